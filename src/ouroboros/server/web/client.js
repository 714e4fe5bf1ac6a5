// Requests to the server that gave this page. Knows nothing of what is shown.

const at = (path) => new URL(path, document.baseURI);

// Why a request did not come to its end. `again`: the same request may succeed later; `after`: seconds to wait first.
export class Failure extends Error {
  constructor(message, { status = 0, again = false, after = 0 } = {}) {
    super(message);
    this.status = status;
    this.again = again;
    this.after = after;
  }
}

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

async function ask(path, options) {
  let response;
  try {
    response = await fetch(at(path), { cache: "no-store", redirect: "error", ...options });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Failure("The server does not answer.", { again: true });
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const { status } = response;
  let message = "";
  try {
    message = String((await response.json()).error.message);
  } catch {
    // no error of the API: something between here and the server wrote it
  }
  const after = Number(response.headers.get("Retry-After")) || 0;
  if (status === 429) return new Failure("The server's queue is full.", { status, again: true, after });
  if (status === 502 || status === 503 || status === 504) {
    return new Failure("The server is starting or stopping.", { status, again: true, after });
  }
  if (status === 401) return new Failure("The server wants an API key: give it under Settings.", { status });
  return new Failure(message || `The server answered with status ${status}.`, { status });
}

// Name of the model that is served.
export async function model(key, signal) {
  const response = await ask("v1/models", { headers: headers(key), signal });
  return (await response.json()).data?.[0]?.id ?? "";
}

// Whether the models are loaded.
export async function healthy(signal) {
  try {
    await ask("health", { signal });
    return true;
  } catch {
    return false;
  }
}

// The values of the events of one request, as they come. An end without [DONE] is a failure.
export async function* stream(body, key, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    const value = JSON.parse(data);
    if (value.error) throw inStream(value.error);
    yield value;
  }
  throw new Failure("The server went away.", { again: true });
}

function inStream(error) {
  const again = error.code === "stopping" || error.code === "loading";
  return new Failure(String(error.message), { again });
}

async function* events(bytes, signal) {
  const reader = bytes.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.map((one) => one.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof Failure) throw error;
    throw new Failure("The server went away.", { again: true });
  } finally {
    reader.cancel().catch(() => {});
  }
}
