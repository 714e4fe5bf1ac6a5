// One answer on the page: its tokens by source, tokens per step as a plot, its figures. Text is only ever a text node.

const SOURCES = { draft: "draft model", phrase: "phrase memory", bonus: "target model" };
const SVG = "http://www.w3.org/2000/svg";
const PLOTTED = 160; // steps; earlier ones leave the plot on the left

export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

export class Answer {
  constructor(title, plain) {
    this.plain = plain;
    this.title = title;
    this.root = element("article", "answer writing");
    this.root.setAttribute("aria-label", `Answer, ${title}`);
    const head = element("header");
    this._rate = element("span", "rate");
    this._figures = element("span", "figures quiet");
    head.append(element("h2", "", title), this._rate, " ", this._figures);
    this._plot = document.createElementNS(SVG, "svg");
    this._plot.setAttribute("class", "plot");
    this._plot.setAttribute("role", "img");
    this._plot.setAttribute("preserveAspectRatio", "none");
    this._caption = element("p", "caption quiet");
    this._text = element("div", "text");
    this._text.tabIndex = 0;
    this._text.setAttribute("role", "document");
    this._text.setAttribute("aria-label", `Text of ${title}; left and right arrow: token by token`);
    this._note = element("p", "note");
    this._note.hidden = true;
    this.root.append(head, this._plot, this._caption, this._text, this._note);
    this.reset();
  }

  // Nothing has been written: before a request, and before it is sent again.
  reset() {
    this.text = "";
    this.tokens = 0;
    this.steps = []; // of each step: its number, its tokens in all and by source
    this.reason = null;
    this._times = null; // of the first and the last tokens
    this._first = 0; // tokens that came with the first: nobody knows how long they took
    this._text.replaceChildren();
    this.root.classList.add("writing");
    this.note("");
    this._draw();
  }

  get rate() {
    if (!this._times || this._times[1] <= this._times[0]) return 0;
    return (1000 * (this.tokens - this._first)) / (this._times[1] - this._times[0]);
  }

  // A chunk of /v1/chat/completions.
  take(chunk) {
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const content = choice.delta?.content ?? "";
    const sources = choice.sources ?? [];
    const next = this._last() + 1; // a chunk is a step, where its number is not said
    for (const token of sources) this._add({ step: next, ...token });
    // Text without tokens: the end that was held back for a stop string, or a server that names no sources.
    if (content && !sources.length) this._show(content, "bonus", this._group(choice.sources ? this._last() : this._last() + 1));
    this.text += content;
    if (sources.length) this._clock(sources.length);
    if (choice.finish_reason) this.reason = choice.finish_reason;
    this._later();
  }

  // The request has ended; `why` is what the reader should know of it.
  end(why = "") {
    this.root.classList.remove("writing");
    if (why) this.note(why);
    else if (this.reason === "length") this.note("Cut off at the most tokens that are allowed: see Settings.");
    this._draw();
  }

  note(text) {
    this._note.textContent = text;
    this._note.hidden = !text;
  }

  describe() {
    return this.rate ? `${this.counts}, ${this.rate.toFixed(1)} tokens per second` : this.counts;
  }

  get counts() {
    const number = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
    return `${number(this.tokens, "token")} in ${number(this.steps.length, "step")}`;
  }

  _last() {
    return this.steps.at(-1)?.number ?? 0;
  }

  _add({ text, source, step: number, refused = [] }) {
    if (number === null) return this._show(text, source, this._group(this._last())); // held back, of tokens that were counted
    const step = this._group(number);
    step.all += 1;
    step[source] = (step[source] ?? 0) + 1;
    this.tokens += 1;
    this._show(text, source, step, refused);
  }

  _group(number) {
    let step = this.steps.at(-1);
    if (step?.number !== number) {
      step = { number, all: 0, span: element("span", "step") };
      step.span.step = step;
      this.steps.push(step);
      this._text.append(step.span);
    }
    return step;
  }

  _show(text, source, step, refused = []) {
    if (!text) return; // a part of a character, or an end-of-sequence token: counted, not seen
    const span = element("span", `token ${source in SOURCES ? source : "bonus"}`, text);
    span.place = step.all;
    span.refused = refused;
    step.span.append(span);
  }

  _clock(count) {
    const now = performance.now();
    if (this._times) this._times[1] = now;
    else {
      this._times = [now, now];
      this._first = count;
    }
  }

  _later() {
    this._frame ??= requestAnimationFrame(() => this._draw());
  }

  _draw() {
    if (this._frame) cancelAnimationFrame(this._frame);
    this._frame = null;
    const { steps, tokens, rate } = this;
    const mean = steps.length ? (tokens / steps.length).toFixed(2) : "0";
    this._rate.textContent = rate ? `${rate.toFixed(1)} tokens/s` : "";
    this._figures.textContent = tokens ? this.counts : "";
    const shown = steps.slice(-PLOTTED);
    const most = Math.max(0, ...shown.map((step) => step.all));
    const top = Math.max(4, most);
    const caption = `tokens per step: ${mean} on average, ${most} at most`;
    this._caption.textContent = tokens ? caption : "";
    this._plot.setAttribute("aria-label", caption);
    this._plot.setAttribute("viewBox", `0 0 ${Math.max(40, shown.length)} ${top}`);
    this._plot.replaceChildren(...shown.flatMap((step, x) => bars(step, x, top)));
  }
}

function bars(step, x, top) {
  let height = 0;
  return Object.keys(SOURCES)
    .filter((source) => step[source])
    .map((source) => {
      height += step[source];
      const bar = document.createElementNS(SVG, "rect");
      const place = { class: source, x: x + 0.1, y: top - height, width: 0.8, height: step[source] };
      for (const [name, value] of Object.entries(place)) bar.setAttribute(name, value);
      return bar;
    });
}

// What is to be said of a token.
export function meaning(token) {
  const { step } = token.parentElement;
  const source = SOURCES[Object.keys(SOURCES).find((name) => token.classList.contains(name))];
  const words = token.refused.map((text) => JSON.stringify(text)).join(", ");
  const refused = words && `\ndrafted here and refused: ${words}`;
  return `${source}, step ${step.number}, token ${token.place} of ${step.all}${refused}`;
}
