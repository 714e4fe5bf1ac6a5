// The page: what is asked, in which way, and what is said while it is answered.

import { Answer, element } from "./answer.js";
import { Failure, healthy, model, stream } from "./client.js";
import { explainTokens } from "./tip.js";

const $ = (id) => document.getElementById(id);
const TITLES = { ouroboros: "Ouroboros", plain: "Plain decoding" };
const LONGEST_WAIT = 5; // seconds between two looks whether the server is back

const log = $("log");
let messages = []; // of the conversation, without the system's
let running = null; // the AbortController of what is being answered
let served = ""; // the model's name

function say(text) {
  $("status").textContent = text;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function keep(storage, name, value) {
  try {
    if (value === undefined) return window[storage].getItem(name) ?? "";
    window[storage].setItem(name, value);
  } catch {
    // a browser that stores nothing: asked for again next time
  }
  return value ?? "";
}

// ------------------------------------------------------------------------------------------------ asking

async function send() {
  const text = $("prompt").value;
  if (running || !text.trim()) return;
  if (!$("temperature").checkValidity() || !$("tokens").checkValidity()) {
    $("settings").open = true;
    $("ask").reportValidity();
    return;
  }
  const mode = new FormData($("ask")).get("mode");
  const turn = begin(text);
  $("prompt").value = "";
  const modes = mode === "both" ? ["ouroboros", "plain"] : [mode];
  await work(async (signal) => {
    for (const one of modes) {
      if (!signal.aborted) await answer(turn, one, signal);
    }
  });
  if (!turn.root.isConnected) return; // a new chat was begun meanwhile
  const [first] = turn.answers;
  if (first.text) messages = [...turn.messages, { role: "assistant", content: first.text }];
  else if (!$("prompt").value) $("prompt").value = text;
}

function begin(text) {
  $("intro").hidden = true;
  const system = $("system").value.trim();
  const turn = {
    messages: [...messages, { role: "user", content: text }],
    system: system ? [{ role: "system", content: system }] : [],
    seed: Math.floor(Math.random() * 2 ** 31), // one for both ways of decoding, so that they write the same
    temperature: Number($("temperature").value),
    tokens: Number($("tokens").value),
    answers: [],
    root: element("section", "turn"),
    place: element("div", "answers"),
    verdict: element("p", "verdict"),
  };
  turn.verdict.hidden = true;
  turn.root.append(element("div", "question", text), turn.place, turn.verdict);
  log.append(turn.root);
  turn.root.scrollIntoView({ block: "end" });
  return turn;
}

async function work(task) {
  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  notice("");
  try {
    await task(running.signal);
  } finally {
    running = null;
    $("stop").hidden = true;
    $("send").hidden = false;
  }
}

async function answer(turn, mode, signal) {
  const shown = new Answer(TITLES[mode], mode === "plain");
  turn.answers.push(shown);
  turn.place.append(shown.root);
  say(`${TITLES[mode]} is answering`);
  try {
    await untilAnswered(() => body(turn, mode), shown, signal);
    shown.end();
    say(`${TITLES[mode]}: ${shown.text} (${shown.describe()})`);
  } catch (error) {
    if (signal.aborted) {
      shown.end("Stopped.");
      notice("");
      say("Stopped");
    } else if (error instanceof Failure) {
      shown.end(error.message);
      notice(error.message);
      if (error.status === 401) askForKey();
    } else {
      shown.end("This page failed; the console says why.");
      throw error;
    }
  } finally {
    offerOther(turn);
    compare(turn);
    follow();
  }
}

function body(turn, mode) {
  return {
    model: served,
    messages: [...turn.system, ...turn.messages],
    stream: true,
    return_sources: true,
    temperature: turn.temperature,
    max_tokens: turn.tokens,
    seed: turn.seed,
    // Plain decoding leaves nothing in memory: the other way must not find the very text there.
    ...(mode === "plain" ? { draft: false, memory: false } : {}),
  };
}

// A request is whole in itself, so a server that was restarted is simply asked again, from the beginning.
async function untilAnswered(request, shown, signal) {
  for (;;) {
    try {
      if (!served) await greet(signal);
      let begun = false;
      for await (const chunk of stream(request(), $("key").value, signal)) {
        if (!begun) {
          shown.reset();
          notice("");
        }
        begun = true;
        shown.take(chunk);
        follow();
      }
      return;
    } catch (error) {
      if (!(error instanceof Failure && error.again) || signal.aborted) throw error;
      const words = `${error.message} Trying again; Stop gives up.`;
      notice(words);
      shown.note(words);
      say(words);
      if (error.status !== 429) served = "";
      await back(error.after, signal);
    }
  }
}

async function back(seconds, signal) {
  for (let wait = Math.max(seconds, 0.5); ; wait = Math.min(2 * wait, LONGEST_WAIT)) {
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, 1000 * wait);
      signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
    });
    signal.throwIfAborted();
    if (await healthy(signal)) return;
  }
}

// ------------------------------------------------------------------------------------------------ comparing

function offerOther(turn) {
  turn.place.querySelector(".actions")?.remove();
  const [first] = turn.answers;
  if (turn.answers.length > 1 || !first.text) return;
  const other = first.plain ? "ouroboros" : "plain";
  const button = element("button", "", `Compare with ${other === "plain" ? "plain decoding" : "Ouroboros"}`);
  button.type = "button";
  button.addEventListener("click", () => running || work((signal) => answer(turn, other, signal)));
  const actions = element("p", "actions");
  actions.append(button);
  first.root.append(actions);
}

function compare(turn) {
  const plain = turn.answers.find((one) => one.plain);
  const drafted = turn.answers.find((one) => !one.plain);
  if (!plain?.tokens || !drafted?.tokens) return;
  const same = plain.text === drafted.text;
  const both = same ? "Both wrote the same text." : sameSoFar(plain, drafted) ? "The same text, as far as both went." : "The texts differ.";
  turn.verdict.textContent = `${faster(drafted, plain)} ${both}`;
  turn.verdict.hidden = false;
  say(turn.verdict.textContent);
}

function faster(drafted, plain) {
  // An answer of one step came all at once: nobody knows how long its tokens took.
  if (!plain.rate || !drafted.rate) return `Too short to be timed: ${drafted.counts} with Ouroboros, ${plain.counts} without.`;
  const rates = `${drafted.rate.toFixed(1)} to ${plain.rate.toFixed(1)} tokens per second`;
  return `Ouroboros is ${(drafted.rate / plain.rate).toFixed(2)} times as fast: ${rates}.`;
}

function sameSoFar(one, other) {
  return one.text.startsWith(other.text) || other.text.startsWith(one.text);
}

// ------------------------------------------------------------------------------------------------ the rest

function follow() {
  const below = log.scrollHeight - log.scrollTop - log.clientHeight;
  if (below < 160) log.scrollTop = log.scrollHeight;
}

async function greet(signal) {
  served = await model($("key").value, signal);
  $("model").textContent = served;
}

function askForKey() {
  $("settings").open = true;
  $("key").focus();
}

function dress(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  $("theme").setAttribute("aria-pressed", String(dark));
  return dark;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
$("stop").addEventListener("click", () => {
  running?.abort();
  $("prompt").focus();
});
$("fresh").addEventListener("click", () => {
  running?.abort();
  messages = [];
  for (const turn of log.querySelectorAll(".turn")) turn.remove();
  $("intro").hidden = false;
  $("prompt").focus();
});
$("key").value = keep("sessionStorage", "ouroboros-key");
$("key").addEventListener("change", () => {
  keep("sessionStorage", "ouroboros-key", $("key").value);
  if (!served) greet().then(() => notice(""), () => {});
});
$("theme").addEventListener("click", () => {
  const theme = dress(document.documentElement.dataset.theme) ? "light" : "dark";
  keep("localStorage", "ouroboros-theme", theme);
  dress(theme);
});
dress(keep("localStorage", "ouroboros-theme"));
explainTokens(log, $("tip"), say);
greet().catch((error) => {
  if (!(error instanceof Failure)) throw error;
  notice(error.message);
  if (error.status === 401) askForKey();
});
