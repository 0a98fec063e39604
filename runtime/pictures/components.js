// The components of every page of chan: pictures with the regions that words chose, hits, explanations.
//
// A page that is a file has its data in `<script type="application/json" id="...">`, and places `data-view="hits"` or
// `data-view="explanation"` with `data-from="..."` that are drawn when the page is read. The live page imports this
// module.
// Everything that comes from captions, names and metadata becomes text nodes or attributes of pictures, never HTML.
//
// The data is that of the server's answers; docs/serve.md describes each field.
// result: {certified, reason, rows, rescored, rescored_share, hits, words: those of the query, [] where each hit has
//   its own, picture: URL of the query's picture, which is that of every hit, or null}
// hit: {id, score, metadata, picture: URL or null, lost: why it cannot be shown, words}
// word: {word, known, mark, region, box: [left, top, width, height] in parts of 1 or null, similarity, share or null},
//   or {word, known, mark, off: true} for one that was switched off

const COLORS = 12;
const PRINTED = 500; // hits on paper
const MARK_NOTES = {
  "<start>": "marks where the caption begins", "[CLS]": "marks where the caption begins",
  "<end>": "marks where the caption ends", "[SEP]": "marks where the caption ends",
};

// JSON with every digit of its integers: one too large for a number is kept as text that stringify writes as it was.
export function parseJson(text) {
  const keep = (key, value, context) => (typeof value === "number" && Math.abs(value) > Number.MAX_SAFE_INTEGER
    && /^-?\d+$/.test(context?.source) ? JSON.rawJSON(context.source) : value);
  return JSON.parse(text, /\d{16}/.test(text) && "rawJSON" in JSON ? keep : undefined);
}

// An element with properties and children; text children are text, whatever they hold.
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Text from others with its control characters and its overrides of the reading direction as escapes.
export function visible(text) {
  const escaped = (letter) => `\\u${letter.codePointAt(0).toString(16).padStart(4, "0")}`;
  return String(text).replace(/[\p{Cc}\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/gu,
    (letter) => (letter === "\n" || letter === "\t" ? " " : escaped(letter)));
}

export function percent(share) {
  if (share !== 0 && Math.abs(share) < 0.001) return share > 0 ? "< 0.1 %" : "> -0.1 %";
  return `${(100 * share).toFixed(Math.abs(share) < 0.0995 ? 1 : 0)} %`;
}

// What a hit is called: its caption, else the file name in its id.
export function titleOf(hit) {
  const caption = hit.metadata.caption;
  return visible(typeof caption === "string" && caption ? caption : String(hit.id).split("/").pop() || hit.id);
}

// The class of each word's color: words of the caption take turns, marks are gray.
export function colorsOf(words) {
  let next = 0;
  return words.map((word) => (word.mark ? "cmark" : `c${next++ % COLORS}`));
}

export function explainWord(word) {
  const text = visible(word.word);
  if (word.mark) return `${text} ${MARK_NOTES[text]}. The tokenizer adds it, and the model aligns it like a word.`;
  return word.known === false ? `The model does not know “${text}”. All unknown words are the same word to it.` : "";
}

// The words that are lit. Whoever draws words listens.
export class Light {
  words = [];
  #listeners = new Set();

  listen(listener) {
    this.#listeners.add(listener);
    listener(this.words);
    return () => this.#listeners.delete(listener);
  }

  show(words) {
    this.words = words;
    for (const listener of this.#listeners) listener(words);
  }

  // Light words while the pointer or the focus is on an element.
  follow(element, words) {
    element.addEventListener("pointerenter", () => this.show(words));
    element.addEventListener("pointerleave", () => this.show([]));
    element.addEventListener("focus", () => this.show(words));
    element.addEventListener("blur", () => this.show([]));
  }
}

function chip(tag, word, color, properties = {}) {
  const unknown = word.known === false && !word.mark;
  const classes = ["chip", color, unknown ? "unknown" : "", properties.class ?? ""].join(" ").trim();
  return make(tag, { title: explainWord(word) || null, ...properties, class: classes }, visible(word.word));
}

// How the address of a picture becomes a picture; a page whose pictures need a key replaces it.
let load = (image, address) => { image.src = address; };
export function loadPicturesWith(loader) { load = loader; }

// A picture with a box for each region that words chose. Without a place for regions it is the picture alone.
export class RegionPicture {
  constructor(hit, light, { large = false } = {}) {
    this.hit = hit;
    this.colors = colorsOf(hit.words);
    this.boxes = [];
    this.tag = make("span", { class: "tag", "aria-hidden": "true" });
    this.picture = make("div", { class: "picture" });
    this.element = make("div", { class: "frame" });
    const address = (large && hit.large) || hit.picture;
    if (!address) {
      this.element.append(make("p", { class: "lost" }, visible(hit.lost || "This row has no picture.")));
      return;
    }
    const image = make("img", {
      alt: `Picture: ${titleOf(hit)}`, loading: large ? null : "lazy", decoding: "async", draggable: "false",
    });
    image.addEventListener("load", () => {
      this.picture.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight || 1);
    });
    image.addEventListener("error", () => {
      this.element.replaceChildren(make("p", { class: "lost" }, "The picture of this row cannot be shown."));
    });
    load(image, address);
    this.picture.append(image, ...this.#drawBoxes(light, large), this.tag);
    this.element.append(this.picture);
  }

  #drawBoxes(light, buttons) {
    const byRegion = new Map();
    this.hit.words.forEach((word, index) => {
      if (word.box) byRegion.set(word.region, [...(byRegion.get(word.region) ?? []), index]);
    });
    const weight = (index) => {
      const word = this.hit.words[index];
      return word.mark ? -1 : Math.abs(word.share ?? word.similarity);
    };
    const strongest = Math.max(1e-9, ...this.hit.words.map((word, index) => (word.off ? 0 : weight(index))));
    for (const [region, words] of byRegion) {
      const first = words.reduce((best, index) => (weight(index) > weight(best) ? index : best));
      const [left, top, width, height] = this.hit.words[first].box;
      const chosen = words.map((index) => this.#name(index)).join(", ");
      const box = make(buttons ? "button" : "span", {
        class: `box ${this.colors[first]} ${weight(first) < 0 ? "quiet" : ""}`,
        type: buttons ? "button" : null, "data-region": region,
        "aria-label": buttons ? `Region ${region}, chosen by ${chosen}` : null,
      });
      const place = { left, top, width, height };
      for (const [name, part] of Object.entries(place)) box.style[name] = `${100 * part}%`;
      box.style.setProperty("--strength", 0.3 + 0.7 * Math.sqrt(Math.max(0, weight(first)) / strongest));
      light.follow(box, words);
      this.boxes.push({ box, words, first, color: this.colors[first], place, weight: weight(first) });
    }
    this.boxes.sort((one, other) => one.weight - other.weight);
    return this.boxes.map((one) => one.box);
  }

  #name(index) {
    const word = this.hit.words[index];
    return `${visible(word.word)} ${word.similarity.toFixed(2)}`;
  }

  // Show the regions of these words alone, with their similarities; no words: every region.
  light(words) {
    const found = this.boxes.filter((one) => one.words.some((word) => words.includes(word)));
    this.picture.classList.toggle("dimmed", found.length > 0);
    for (const one of this.boxes) {
      const color = this.colors[words.find((word) => one.words.includes(word)) ?? one.first];
      one.box.classList.replace(one.color, color);
      one.color = color;
      one.box.classList.toggle("lit", found.includes(one));
    }
    this.tag.classList.toggle("shown", found.length > 0);
    if (!found.length) return;
    const { place, color } = found[found.length - 1];
    const names = words.filter((word) => !this.hit.words[word].off).map((word) => this.#name(word));
    this.tag.textContent = names.join(", ");
    this.tag.className = `tag shown ${color}`;
    // The name stays inside the picture: beside the box's edge that leaves it more room, over it or under it.
    const { style } = this.tag;
    style.left = style.right = style.top = style.bottom = "auto";
    if (place.left + place.width / 2 < 0.5) {
      style.left = `${100 * place.left}%`;
      style.maxWidth = `${100 * (1 - place.left)}%`;
    } else {
      style.right = `${100 * (1 - place.left - place.width)}%`;
      style.maxWidth = `${100 * (place.left + place.width)}%`;
    }
    if (place.top > 0.12) style.bottom = `${100 * (1 - place.top)}%`;
    else style.top = `${100 * Math.min(place.top + place.height, 0.88)}%`;
  }
}

// A bar of the words' shares of a score; the table of shares says the same in figures.
function shareBar(hit) {
  const colors = colorsOf(hit.words);
  const bar = make("div", { class: "share-bar", "aria-hidden": "true" });
  hit.words.forEach((word, index) => {
    if (word.off || word.share === null) return;
    const part = make("i", { class: colors[index], "data-word": index });
    part.style.flexGrow = Math.abs(word.share);
    bar.append(part);
  });
  return bar;
}

function meter(value, largest, text) {
  const fill = make("i");
  fill.style.width = `${Math.min(100, (100 * Math.abs(value)) / Math.max(largest, 1e-9))}%`;
  return make("td", {}, make("span", { class: "meter", "aria-hidden": "true" }, fill),
    make("span", { class: "figure" }, text));
}

// The words with their similarities and shares of the score; pointing at a row lights its region.
export function shareTable(hit, light) {
  const colors = colorsOf(hit.words);
  const words = hit.words.map((word, index) => ({ word, index })).filter((one) => !one.word.off);
  const shared = words.some(({ word }) => word.share !== null);
  const largest = Math.max(...words.map(({ word }) => Math.abs(word.similarity)));
  const rows = words.map(({ word, index }) => {
    const button = chip("button", word, colors[index], { type: "button" });
    light.follow(button, [index]);
    const row = make("tr", { class: colors[index], "data-word": index },
      make("th", { scope: "row" }, button),
      meter(word.similarity, largest, word.similarity.toFixed(2)),
      shared ? meter(word.share, 1, percent(word.share)) : null);
    row.addEventListener("pointerenter", () => light.show([index]));
    row.addEventListener("pointerleave", () => light.show([]));
    return row;
  });
  const table = make("table", { class: "shares" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "word"), make("th", { scope: "col" }, "similarity"),
      shared ? make("th", { scope: "col" }, "share of the score") : null)),
    make("tbody", {}, ...rows));
  light.listen((lit) => rows.forEach((row) => row.classList.toggle("lit", lit.includes(Number(row.dataset.word)))));
  return table;
}

// Names and values as a list.
function listOf(pairs) {
  return make("dl", {}, ...pairs.flatMap(([name, value]) => [
    make("dt", {}, visible(name)), make("dd", {}, visible(value))]));
}

// A picture beside the table of its words.
export function explanation(hit, { heading = null } = {}) {
  const light = new Light();
  const picture = new RegionPicture(hit, light, { large: true });
  light.listen((words) => picture.light(words));
  const about = Object.entries(hit.metadata).filter(([, value]) => value !== null);
  const list = listOf(about.map(([key, value]) => [key, typeof value === "string" ? value : JSON.stringify(value)]));
  list.className = "metadata";
  const notes = [...new Set(hit.words.filter((word) => !word.off).map(explainWord).filter(Boolean))];
  return make("div", { class: "explanation" }, picture.element,
    make("div", { class: "side" }, heading,
      make("p", { class: "score-line" }, "Score ", make("b", {}, hit.score.toFixed(4))),
      hit.words.length ? shareTable(hit, light) : null,
      ...notes.map((note) => make("p", {}, make("small", {}, note))),
      about.length ? list : null));
}

// One verdict of a search that explains itself when it is opened.
export function badge(answer) {
  const verdict = answer.certified ? `certified, ${percent(answer.rescored_share)} rescored` : "not certified";
  const hits = answer.hits.length;
  const meaning = answer.certified
    ? `These are proven to be the best ${hits} of ${answer.rows}: the same hits in the same order as scoring every row `
      + `in full. The scan read small copies of all rows; proven bounds left ${answer.rescored} that could be among `
      + "the best, and these were scored again in full."
    : "Nothing proves that these are the best of all rows. They are the best that this search found.";
  const facts = [["reason", answer.reason], ["rows", answer.rows.toLocaleString("en")],
    ["scored again", answer.rescored.toLocaleString("en")]];
  const details = make("details", { class: "explained" },
    make("summary", {}, make("span", { class: `badge ${answer.certified ? "good" : ""}` }, verdict)),
    make("div", {}, make("p", {}, meaning), listOf(facts)));
  details.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !details.open) return;
    event.stopPropagation();
    details.open = false;
    details.querySelector("summary").focus();
  });
  return details;
}

// The words of the query, one tab stop: arrows go from word to word. With `toggle` a word can be switched off. A finger
// cannot point, so its first tap lights the word and the next one switches it.
export function wordBar(words, light, { toggle = null, off = new Set() } = {}) {
  const colors = colorsOf(words);
  let [tapped, before] = [false, -1];
  const chips = words.map((word, index) => {
    const button = chip("button", word, colors[index], {
      type: "button", tabindex: index ? "-1" : "0", class: off.has(index) ? "off" : "",
      "aria-pressed": toggle ? String(!off.has(index)) : null,
      onclick: () => {
        if (tapped && before !== index) light.show([index]);
        else toggle?.(index);
        before = index;
      },
    });
    button.addEventListener("pointerdown", ({ pointerType }) => { tapped = pointerType === "touch"; });
    button.addEventListener("keydown", () => { tapped = false; });
    light.follow(button, [index]);
    return button;
  });
  const bar = make("div", { class: "words word-bar", role: "toolbar", "aria-label": "Words of the caption" }, ...chips);
  bar.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    const at = chips.indexOf(document.activeElement);
    if (step === undefined || at < 0) return;
    event.preventDefault();
    const next = Math.min(chips.length - 1, Math.max(0, at + step));
    chips.forEach((one, index) => one.setAttribute("tabindex", index === next ? "0" : "-1"));
    chips[next].focus();
  });
  light.listen((lit) => chips.forEach((one, index) => one.classList.toggle("lit", lit.includes(index))));
  return bar;
}

// A caption with each of its words in the color of its region.
function spokenCaption(hit, light) {
  const colors = colorsOf(hit.words);
  const line = make("p", { class: "caption", dir: "auto" });
  hit.words.forEach((word, index) => {
    if (word.mark) return;
    const span = make("span", { class: `spoken ${colors[index]}`, "data-word": index }, visible(word.word));
    light.follow(span, [index]);
    line.append(span, " ");
  });
  light.listen((lit) => line.querySelectorAll(".spoken").forEach(
    (span) => span.classList.toggle("lit", lit.includes(Number(span.dataset.word)))));
  return line;
}

// How far a hit moved from its place before words were switched off.
function movement(before, index) {
  if (before === index) return null;
  const [text, meaning, way] = before === undefined ? ["new", "not found with all words", "up"]
    : before > index ? [`▲${before - index}`, `rank ${before + 1} with all words`, "up"]
      : [`▼${index - before}`, `rank ${before + 1} with all words`, "down"];
  return make("span", { class: `moved ${way}`, title: meaning }, make("span", { "aria-hidden": "true" }, text),
    make("span", { class: "hidden" }, meaning));
}

// One hit in the grid. Words of a common query are lit together with those of the other hits.
class Card {
  constructor(hit, index, count, { light, own, open, truth, before }) {
    this.light = own ? new Light() : light;
    const local = own ? this.light : new Light(); // a region is lit here and in the bar of words, not on every hit
    this.picture = new RegionPicture(hit, local);
    this.bar = shareBar(hit);
    const name = titleOf(hit);
    const spells = own && hit.words.length > 0; // the words of its caption, one by one
    const [shownName, spoken] = spells ? [visible(hit.id), `${visible(hit.id)}, ${name}`] : [name, name];
    this.button = make("button", {
      class: "open-hit", type: "button", tabindex: "-1", title: name,
      "aria-label": `${spoken}, rank ${index + 1}, score ${hit.score.toFixed(3)}: open`,
      onclick: (event) => {
        event.stopPropagation();
        open(index);
      },
    }, make("bdi", {}, shownName));
    const line = make("div", { class: "line" }, make("span", { class: "rank" }, `${index + 1}`), this.button,
      before ? movement(before.get(hit.id), index) : null, make("span", { class: "score" }, hit.score.toFixed(3)));
    const meant = truth !== undefined && truth === hit.id;
    this.element = make("li", {
      class: `hit ${meant ? "truth" : ""}`, "aria-setsize": count, "aria-posinset": index + 1,
      onclick: () => open(index),
    }, this.picture.element,
    make("div", { class: "about" }, line,
      spells ? spokenCaption(hit, this.light) : null, hit.words.length ? this.bar : null));
    const draw = (words) => {
      this.picture.light(words);
      for (const part of this.bar.children) {
        part.classList.toggle("faded", words.length > 0 && !words.includes(Number(part.dataset.word)));
      }
    };
    this.forget = this.light.listen(draw);
    if (own) return;
    local.listen((words) => {
      draw(words.length ? words : light.words);
      light.chips?.(words);
    });
  }
}

// Hits as a grid of cards of one size. Only cards in view exist, so ten thousand hits scroll as ten do.
export class HitGrid {
  #cards = new Map();
  #hits = [];
  #options = null;
  #columns = 1;
  #size = { width: 0, height: 0, gap: 0 };
  #current = 0;
  #due = false;

  constructor(list) {
    this.list = list;
    const draw = () => {
      if (this.#due) return;
      this.#due = true;
      requestAnimationFrame(() => {
        this.#due = false;
        this.#draw();
      });
    };
    addEventListener("beforeprint", () => this.#draw(true));
    addEventListener("scroll", draw, { passive: true });
    addEventListener("resize", draw);
    new ResizeObserver(() => this.#measure()).observe(list);
    list.addEventListener("keydown", (event) => this.#onKey(event));
    list.addEventListener("focusin", (event) => {
      for (const [index, card] of this.#cards) if (card.button === event.target) this.#setCurrent(index);
    });
  }

  // options: light; own: whether each hit has its own words; open(index); truth and before as in `HitsView`
  show(hits, options) {
    const focused = this.list.contains(document.activeElement);
    this.#clear();
    this.#hits = hits;
    this.#options = options;
    if (!focused || this.#current >= hits.length) this.#current = 0;
    this.#measure();
    if (focused) this.#cards.get(this.#current)?.button.focus({ preventScroll: true });
  }

  // Move the focus to a hit, and the view with it.
  focus(index) {
    if (!this.#hits.length) return;
    const wanted = Math.min(this.#hits.length - 1, Math.max(0, index));
    const row = Math.floor(wanted / this.#columns);
    const top = this.list.getBoundingClientRect().top + scrollY + row * this.#size.height;
    const covered = [...document.querySelectorAll("[data-sticky]")]
      .filter((one) => getComputedStyle(one).position === "sticky")
      .reduce((sum, one) => sum + one.offsetHeight, 0);
    if (top < scrollY + covered) scrollTo({ top: top - covered - this.#size.gap });
    else if (top + this.#size.height > scrollY + innerHeight) scrollTo({ top: top + this.#size.height - innerHeight });
    this.#setCurrent(wanted);
    this.#draw();
    this.#cards.get(wanted)?.button.focus({ preventScroll: true });
  }

  #setCurrent(index) {
    this.#cards.get(this.#current)?.button.setAttribute("tabindex", "-1");
    this.#current = index;
    this.#cards.get(index)?.button.setAttribute("tabindex", "0");
  }

  #clear() {
    for (const index of [...this.#cards.keys()]) this.#remove(index);
  }

  #remove(index) {
    const card = this.#cards.get(index);
    card.forget();
    card.element.remove();
    this.#cards.delete(index);
  }

  #measure() {
    const width = this.list.clientWidth;
    if (!this.#hits.length || !width) {
      this.list.style.height = "0";
      return;
    }
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    const gap = width < 36 * rem ? 0.6 * rem : rem;
    const ideal = Math.min(21 * rem, Math.max(10 * rem, width / 5.2));
    this.#columns = Math.max(1, Math.floor((width + gap) / (ideal + gap)));
    const card = (width - gap * (this.#columns - 1)) / this.#columns;
    this.#size = { width: card, gap, height: 0 };
    this.#clear();
    const sample = this.#card(0);
    this.#size.height = sample.element.offsetHeight + gap;
    this.#place(sample, 0);
    this.list.style.height = `${Math.ceil(this.#hits.length / this.#columns) * this.#size.height - gap}px`;
    this.#draw();
  }

  #card(index) {
    const card = new Card(this.#hits[index], index, this.#hits.length, this.#options);
    card.element.style.width = `${this.#size.width}px`;
    if (index === this.#current) card.button.setAttribute("tabindex", "0");
    let after = null; // cards stand in the order of their ranks, for whoever reads the page in its order
    for (const [other, { element }] of this.#cards) {
      if (other > index && (after === null || other < after[0])) after = [other, element];
    }
    this.list.insertBefore(card.element, after ? after[1] : null);
    this.#cards.set(index, card);
    return card;
  }

  #place(card, index) {
    const { width, gap, height } = this.#size;
    const row = Math.floor(index / this.#columns);
    card.element.style.transform = `translate(${(index % this.#columns) * (width + gap)}px, ${row * height}px)`;
  }

  // Draw the cards in view; on paper, all of them.
  #draw(paper = matchMedia("print").matches) {
    if (!this.#hits.length || !this.#size.height) return;
    const top = -this.list.getBoundingClientRect().top;
    const margin = 0.6 * innerHeight;
    const first = paper ? 0 : Math.max(0, Math.floor((top - margin) / this.#size.height)) * this.#columns;
    const seen = Math.ceil((top + innerHeight + margin) / this.#size.height) * this.#columns;
    const last = Math.min(this.#hits.length, paper ? PRINTED : seen);
    for (const index of [...this.#cards.keys()]) {
      if ((index < first || index >= last) && index !== this.#current) this.#remove(index);
    }
    for (let index = first; index < last; index += 1) {
      if (!this.#cards.has(index)) this.#place(this.#card(index), index);
    }
    if (!this.#cards.has(this.#current)) this.#place(this.#card(this.#current), this.#current);
  }

  #onKey(event) {
    if (!event.target.classList?.contains("open-hit")) return;
    const page = Math.max(1, Math.floor(innerHeight / this.#size.height)) * this.#columns;
    const [here, row] = [this.#current, this.#columns];
    const to = {
      ArrowRight: here + 1, ArrowLeft: here - 1, ArrowDown: here + row, ArrowUp: here - row,
      PageDown: here + page, PageUp: here - page, Home: 0, End: this.#hits.length - 1,
    }[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    if (to >= 0 && to < this.#hits.length) this.focus(to);
  }
}

// A hit at full size over the page, with the hits before and after it.
export class HitDialog {
  #index = -1;

  constructor({ moved = () => {}, closed = () => {} } = {}) {
    this.moved = moved;
    this.title = make("h2", { id: "large-title" });
    this.content = make("div", { class: "content" });
    const button = (text, label, onclick) => make("button",
      { class: "button", type: "button", "aria-label": label, onclick }, text);
    this.previous = button("←", "The hit before", () => this.step(-1));
    this.next = button("→", "The next hit", () => this.step(1));
    this.element = make("dialog", { class: "large", "aria-labelledby": "large-title" },
      make("div", { class: "bar" }, this.title, this.previous, this.next,
        button("✕", "Close", () => this.element.close())),
      this.content);
    this.element.addEventListener("close", () => closed(this.#index));
    this.element.addEventListener("click", (event) => { if (event.target === this.element) this.element.close(); });
    this.element.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step === undefined || event.target.matches("input, textarea, select")) return;
      event.preventDefault();
      this.step(step);
    });
    document.body.append(this.element);
  }

  show(hits, index, draw) {
    this.hits = hits;
    this.draw = draw;
    this.#index = index;
    const hit = hits[index];
    this.title.textContent = hits.length > 1 ? `${index + 1}. ${titleOf(hit)}` : titleOf(hit);
    this.previous.hidden = this.next.hidden = hits.length < 2;
    this.previous.disabled = index === 0;
    this.next.disabled = index === hits.length - 1;
    this.content.replaceChildren(draw(hit));
    if (!this.element.open) this.element.showModal();
  }

  shows(index) { return this.element.open && this.#index === index; }

  step(by) {
    const to = this.#index + by;
    if (to < 0 || to >= this.hits.length) return;
    this.show(this.hits, to, this.draw);
    this.moved(to);
  }
}

// An answer: its verdict, the words of its query, and its hits.
export class HitsView {
  constructor(place, { opened = () => {}, closed = () => {} } = {}) {
    this.head = make("div", { class: "answer-head", "data-sticky": true });
    this.list = make("ul", { class: "hits", "aria-label": "Hits, best first" });
    this.hint = make("p", { class: "hint" });
    place.append(this.head, this.hint, this.list);
    this.grid = new HitGrid(this.list);
    this.opened = opened;
    this.dialog = new HitDialog({ moved: opened, closed: (index) => { this.grid.focus(index); closed(index); } });
  }

  // options: toggle and off as in `wordBar`; draw: hit -> what the dialog shows; truth: id of the hit that was meant;
  // before: id -> place of a hit before words were switched off
  show(answer, options = {}) {
    this.answer = answer;
    this.options = options;
    if (answer.picture) for (const hit of answer.hits) hit.picture = answer.picture;
    const light = new Light();
    const own = answer.words.length === 0;
    const bar = own ? null : wordBar(answer.words, light, options);
    if (bar) {
      light.chips = (lit) => [...bar.children].forEach(
        (one, index) => one.classList.toggle("lit", lit.includes(index)));
    }
    this.head.replaceChildren(bar ?? this.hint, badge(answer));
    if (bar) this.head.after(this.hint);
    const point = matchMedia("(hover: none)").matches ? "Tap" : "Point at";
    const press = options.toggle ? "; press it to search without it" : "";
    const hint = own && !answer.hits.some((hit) => hit.words.length) ? "Open a hit to see it large."
      : own ? `${point} a word or a region to see what chose what. Open a hit for its shares.`
      : `${point} a word to see the region that it chose on every hit${press}.`;
    light.listen((lit) => {
      this.hint.textContent = (lit.length === 1 && answer.words[lit[0]] && explainWord(answer.words[lit[0]])) || hint;
    });
    this.grid.show(answer.hits, { light, own, open: (index) => this.open(index), ...options });
  }

  open(index) {
    if (!this.answer.hits[index]) return;
    this.dialog.show(this.answer.hits, index, this.options.draw ?? explanation);
    this.opened(index);
  }
}

const views = {
  hits: (place, data) => new HitsView(place).show(data, { truth: data.truth }),
  explanation: (place, data) => place.append(explanation(data)),
};
for (const place of document.querySelectorAll("[data-view]")) {
  views[place.dataset.view](place, parseJson(document.getElementById(place.dataset.from).textContent));
}
