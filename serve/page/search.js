// The live page: a search of the server's galleries. The address holds all of its state, so that links, reloads and the
// back button work; only pictures cannot be in it. docs/serve.md describes the requests.

import { HitsView, explanation, loadPicturesWith, make, parseJson, visible } from "./components.js";

const find = (id) => document.getElementById(id);
const SIGNS = {
  "=": "is", "!=": "is not", "<": "<", "<=": "≤", ">": ">", ">=": "≥", "~": "contains", "?": "exists", "!": "is missing",
};
const FILTERS = { "=": "$eq", "!=": "$ne", "<": "$lt", "<=": "$lte", ">": "$gt", ">=": "$gte", "~": "$contains" };
const FIRST = 60; // hits that are shown before a long answer is there
const PATIENCE = 3; // times that a busy server is tried again
let galleries = [];
let limits = {};
let pictures = []; // the pictures that were dropped, chosen or pasted here; the address has their places
let shown = { search: "", whole: null, answer: null }; // what the page shows now
let running = null; // what ends the request that is under way
let key = sessionStorage.getItem("chan-key") ?? "";
let begin = null;
const begun = new Promise((resolve) => { begin = resolve; }); // kept once the server has named its galleries

// -- the server

class Problem extends Error {}

async function request(path, { signal = null, ...options } = {}, tries = PATIENCE) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached.");
  }
  if (response.ok) return response;
  if (response.status === 401 && await askForKey()) return request(path, { signal, ...options }, tries);
  if ((response.status === 429 || response.status === 503) && tries > 0) {
    const seconds = Math.min(10, Number(response.headers.get("retry-after")) || 1);
    say(`The server is busy. Trying again in ${seconds} s.`);
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    return request(path, { signal, ...options }, tries - 1);
  }
  const problem = await response.json().catch(() => null);
  throw new Problem(problem?.detail ?? `The server answered with status ${response.status}.`);
}

// `where` is JSON already, so that no digit of its numbers is lost.
function post(path, fields, signal, where) {
  const body = JSON.stringify(fields).replace(/}$/, where === undefined ? "}" : () => `,"where":${where}}`);
  return request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body, signal });
}

// A request whose body is a picture; the other fields stand in the query.
function postPicture(path, fields, picture, signal) {
  const query = new URLSearchParams(Object.entries(fields).filter(([, value]) => value !== undefined));
  return request(`${path}?${query}`, {
    method: "POST", headers: { "Content-Type": picture.file.type || "image/jpeg" }, body: picture.file, signal });
}

function askForKey() {
  const dialog = find("key-dialog");
  if (key) find("key-text").textContent = "The server did not take this key.";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      key = find("key").value;
      sessionStorage.setItem("chan-key", key);
      find("key").value = "";
      resolve(Boolean(key));
    }, { once: true });
  });
}

// With a key, a picture is fetched with it and shown from memory.
loadPicturesWith(async (image, address) => {
  if (!key || !address.startsWith("/")) {
    image.src = address;
    return;
  }
  try {
    const url = URL.createObjectURL(await (await request(address)).blob());
    image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    image.src = url;
  } catch {
    image.dispatchEvent(new Event("error"));
  }
});

// -- the state, which is the address

function readAddress() {
  const query = new URLSearchParams(location.search);
  return {
    gallery: query.get("gallery") ?? galleries[0].name,
    q: query.get("q") ?? "",
    picture: query.get("picture") ?? "",
    like: query.get("like") ?? "",
    k: Math.min(limits.k, Math.max(1, Number(query.get("k")) || 20)),
    where: query.getAll("where"),
    off: (query.get("off") ?? "").split(",").filter(Boolean).map(Number),
    open: query.get("open") ?? "",
    vs: query.get("vs") ?? "",
  };
}

function addressOf(state) {
  const query = new URLSearchParams();
  if (galleries.length > 1) query.set("gallery", state.gallery);
  for (const name of ["q", "picture", "like", "open", "vs"]) if (state[name]) query.set(name, state[name]);
  if (state.k !== 20) query.set("k", state.k);
  for (const condition of state.where) query.append("where", condition);
  if (state.off.length) query.set("off", state.off.join());
  return query.size ? `?${query}` : location.pathname;
}

function go(changes, { replace = false } = {}) {
  const state = { ...readAddress(), ...changes };
  if (replace) history.replaceState(history.state, "", addressOf(state));
  else history.pushState({ opened: Boolean(state.open) }, "", addressOf(state)); // going back closes what is open
  return render();
}

const galleryOf = (state) => galleries.find((one) => one.name === state.gallery) ?? galleries[0];
const pictureOf = (state) => pictures[parseInt(state.picture, 10)] ?? null;

// -- filters, in the words of `chan search --where`

function readCondition(text) {
  const found = /^(!?)([^=<>!~]+)(?:(>=|<=|!=|=|>|<|~)(.*))?$/s.exec(text);
  if (!found || isJson(text) || (found[1] && found[3])) return { name: text, sign: "?", value: "" };
  return { name: found[2], sign: found[3] ?? (found[1] || "?"), value: found[4] ?? "" };
}

const isJson = (text) => /^\s*[{[]/.test(text);

// All conditions as one filter, in JSON.
function filterOf(conditions) {
  const each = conditions.map((text) => {
    if (isJson(text)) return readJson(text);
    const { name, sign, value } = readCondition(text);
    if (/[=<>!~]/.test(name)) throw new Problem(`The filter ${text} cannot be read.`);
    return conditionOf(name, sign, value);
  });
  return each.length ? `{"$and":[${each}]}` : undefined;
}

// Text cannot show its type: `year=2020` passes rows with the number and rows with the text.
function conditionOf(name, sign, value) {
  const key = JSON.stringify(name);
  if (sign === "?" || sign === "!") return `{${key}:{"$exists":${sign === "?"}}}`;
  const ordered = "<>".includes(sign[0]);
  const every = meaningsOf(value);
  if (ordered && every.length === 1 && !value.trim().startsWith('"') && LIKE_A_NUMBER.test(value.trim())) {
    throw new Problem(`${value} only reads like a number. Quote it if it is text: ${name}${sign}${JSON.stringify(value)}`);
  }
  const meanings = every.filter((meant) => !ordered || !/^[tfn]/.test(meant));
  return `{"${sign === "!=" ? "$and" : "$or"}":[${meanings.map((meant) => `{${key}:{"${FILTERS[sign]}":${meant}}}`)}]}`;
}

// What a text can mean, in JSON: itself, and the number, boolean, null or text that it spells.
function meaningsOf(text) {
  const spelled = text.trim();
  if (spelled.startsWith('"') && parses(spelled)) return [spelled];
  const meant = /^(true|false|null)$/.test(spelled) ? spelled : numberOf(spelled);
  return [...(meant === null ? [] : [meant]), JSON.stringify(text)];
}

// What people and programs also write for numbers: 1_000, 1,000, 1'000, 0x1F, inf, nan, digits of other scripts.
const LIKE_A_NUMBER =
  /^[+-]?(\p{Nd}[\p{Nd}_,']*(\.\p{Nd}*)?(e[+-]?\p{Nd}+)?|\.\p{Nd}+(e[+-]?\p{Nd}+)?|0[xob][\da-f_]+|inf|infinity|nan)$/iu;

// The decimal number that a text spells, in JSON; null for another text, and for what float64 cannot hold.
function numberOf(text) {
  const found = /^([+-]?)(?=\.?\d)(\d*)(?:\.(\d*))?([eE][+-]?\d+)?$/.exec(text);
  if (!found || !Number.isFinite(Number(text))) return null;
  const [, sign, whole, part, power] = found;
  return `${sign === "-" ? "-" : ""}${whole.replace(/^0+(?=\d)/, "") || "0"}${part ? `.${part}` : ""}${power ?? ""}`;
}

function parses(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

function readJson(text) {
  if (!parses(text)) throw new Problem(`The filter ${text} is no JSON.`);
  return text;
}

function conditionRow(text = null) {
  const { name, sign, value } = text === null ? { name: "", sign: "=", value: "" } : readCondition(text);
  const field = make("input", {
    class: "button", "data-part": "name", value: name, list: "keys", "aria-label": "Key", placeholder: "key",
  });
  const signs = make("select", { class: "button", "aria-label": "Relation", "data-part": "sign" },
    ...Object.entries(SIGNS).map(([one, words]) => make("option", { value: one, selected: one === sign }, words)));
  const wanted = make("input", {
    class: "button", "data-part": "value", value, "aria-label": "Value", placeholder: "value",
  });
  const hide = () => { wanted.hidden = "?!".includes(signs.value); };
  signs.addEventListener("change", hide);
  hide();
  const remove = make("button", {
    class: "button", type: "button", "aria-label": "Remove this condition",
    onclick: () => {
      row.remove();
      find("add").focus();
    },
  }, "✕");
  const row = make("div", { class: "condition" }, field, signs, wanted, remove);
  return row;
}

function readConditions() {
  return [...find("conditions").children].map((row) => {
    const read = (part) => row.querySelector(`[data-part="${part}"]`).value.trim();
    const [name, sign, value] = ["name", "sign", "value"].map(read);
    if (/[=<>!~{[]/.test(name) && !(sign === "?" && isJson(name))) return conditionOf(name, sign, value);
    return name && ({ "?": name, "!": `!${name}` }[sign] ?? `${name}${sign}${value}`);
  }).filter(Boolean);
}

// -- what the page says

const count = (number) => number.toLocaleString("en");

const counted = (number, one) => `${count(number)} ${number === 1 ? one : `${one}s`}`;

function say(text) { find("status").textContent = text; }

function showProblem(error) {
  find("problem").replaceChildren(...(error ? [make("p", { class: "problem" }, visible(error.message))] : []));
  if (error) say("");
}

function showOnly(id) {
  for (const one of ["start", "answer", "explained"]) find(one).hidden = one !== id;
}

function showStart(gallery, state) {
  showOnly("start");
  const images = gallery.kind === "images";
  find("start-title").textContent = `${counted(gallery.rows, images ? "picture" : "caption")} to search`;
  find("start-text").textContent = !gallery.takes_captions
    ? "The embeddings of this gallery came from a model that is not here, so it knows no words and no pictures. "
      + "Type the id of a row to find rows like it, or send embeddings to the API."
    : pictureOf(state) ? "Type a caption to see what its words choose in your picture."
    : state.picture ? "The picture of this link was on the page that made it. Drop or paste it again."
      : images ? "Type what a picture shows. Each word then lights the region that it chose. "
        + "Drop or paste a picture of your own to see what a caption's words choose in it."
        : "Drop or paste a picture to find the captions that fit it, and to see what their words chose.";
  say("");
}

// -- searching

function searchOf(state) {
  const { gallery, q, picture, like, k, where, off } = state;
  return JSON.stringify({ gallery, q, picture, like, k, where, off });
}

async function fetchAnswer(state, k, off, signal) {
  const picture = pictureOf(state);
  const asked = { gallery: state.gallery, k };
  const where = filterOf(state.where);
  const response = state.like ? await post("/v1/search", { ...asked, like: state.like }, signal, where)
    : picture ? await postPicture("/v1/search", { ...asked, where }, picture, signal)
    : await post("/v1/search", { ...asked, captions: [state.q], off }, signal, where);
  const { results: [result] } = parseJson(await response.text());
  const times = ["x-inference-time", "x-search-time"].map((name) => Number(response.headers.get(name)));
  return readResult(result, picture, times);
}

// The answer as the components draw it: a word that is off keeps its place in each hit, and of a row that searches
// nobody knows the words.
function readResult(result, picture, [encode, search]) {
  const side = devicePixelRatio > 1 ? 640 : 320;
  const hits = result.hits.map((hit) => {
    const found = hit.words.values();
    const place = (word) => (word.on === false ? { ...word, off: true } : found.next().value);
    return {
      ...hit,
      words: result.words.length ? result.words.map(place) : hit.words.filter((word) => word.word),
      picture: hit.picture && `${hit.picture}&side=${side}`,
      large: hit.picture && `${hit.picture}&side=1280`,
    };
  });
  return { ...result, hits, encode, search, picture: picture?.url ?? null };
}

async function search(state, view) {
  running?.abort();
  const { signal } = (running = new AbortController());
  const gallery = galleryOf(state);
  find("answer").setAttribute("aria-busy", "true");
  say("Searching …");
  showProblem(null);
  try {
    const draw = (answer, whole) => {
      showOnly("answer");
      shown = { search: searchOf(state), whole, answer };
      view.show(answer, {
        off: new Set(state.off), draw: drawLarge,
        toggle: answer.words.length ? (index) => toggle(index, answer) : null,
        before: state.off.length && whole ? new Map(whole.hits.map((hit, index) => [hit.id, index])) : null,
      });
      const keys = new Set(answer.hits.flatMap((hit) => Object.keys(hit.metadata)));
      find("keys").replaceChildren(...[...keys].slice(0, 200).map((value) => make("option", { value })));
    };
    // The answer with all words, from which hits move where words are off.
    let whole = shown.whole?.asked === searchOf({ ...state, off: [] }) ? shown.whole : null;
    if (state.k > 2 * FIRST && !state.off.length) draw(await fetchAnswer(state, FIRST, [], signal), null);
    const [answer, all] = await Promise.all([
      fetchAnswer(state, state.k, state.off, signal),
      state.off.length && !whole ? fetchAnswer(state, state.k, [], signal) : null,
    ]);
    if (!whole) whole = { ...(all ?? answer), asked: searchOf({ ...state, off: [] }) };
    draw(answer, whole);
    say(summary(answer, gallery.kind === "images" ? "picture" : "caption"));
  } finally {
    if (running?.signal === signal) find("answer").removeAttribute("aria-busy");
  }
}

function summary({ hits, rows, encode, search, unknown_words: unknown }, kind) {
  if (!hits.length) return "No row was found.";
  const times = `encoded in ${encode.toFixed(1)} ms, found in ${search.toFixed(1)} ms`;
  return `${count(hits.length)} of ${counted(rows, kind)}; ${times}`
    + (unknown.length ? `. The model does not know ${unknown.map(visible).join(", ")}.` : "");
}

function toggle(index, answer) {
  const { off } = readAddress();
  const next = off.includes(index) ? off.filter((one) => one !== index) : [...off, index].sort((a, b) => a - b);
  if (next.length === answer.words.length) say("One word must stay on.");
  else go({ off: next, open: "", vs: "" }).then(() => document.querySelectorAll(".word-bar .chip")[index]?.focus());
}

// -- one picture, large: the words of one caption, or two captions side by side

async function explain(hit, caption, state) {
  const picture = pictureOf(state);
  const response = galleryOf(state).kind === "images" && !hit.own
    ? await post("/v1/explain", { gallery: state.gallery, id: hit.id, caption })
    : await postPicture("/v1/explain", { gallery: state.gallery, caption }, picture);
  const found = await response.json();
  return { ...hit, score: found.score, words: found.words };
}

function captionOf(hit, state) {
  if (galleryOf(state).kind === "captions" && !hit.own) return hit.metadata.caption ?? hit.id;
  const off = shown.answer ? shown.answer.words.filter((word, index) => state.off.includes(index)) : [];
  return off.length ? `${state.q} (without ${off.map((word) => word.word).join(", ")})` : state.q;
}

function drawLarge(hit) {
  const state = readAddress();
  const caption = captionOf(hit, state);
  const place = make("div", {}, explanation(hit));
  const problem = make("div", { role: "alert" });
  const label = "Another caption for this picture";
  const field = make("input", {
    class: "button", type: "text", value: state.vs, placeholder: label, "aria-label": label, maxlength: "2000",
  });
  const button = make("button", { class: "button", type: "submit" }, "Compare");
  const form = make("form", { class: "compare-form" }, field, button);
  const compare = async () => {
    const other = field.value.trim();
    problem.replaceChildren();
    if (!other) {
      place.replaceChildren(explanation(hit));
      return;
    }
    try {
      const second = await explain(hit, other, state);
      const by = hit.score - second.score;
      const verdict = by ? `The ${by > 0 ? "first" : "second"} caption fits better, by ${Math.abs(by).toFixed(4)}.`
        : "Both captions fit equally well.";
      const side = (one, words) => explanation({ ...one, metadata: {} },
        { heading: make("h3", { dir: "auto" }, visible(words)) });
      place.replaceChildren(make("p", { class: "verdict", role: "status" }, verdict),
        make("div", { class: "compare" }, side(hit, caption), side(second, other)));
    } catch (error) {
      problem.replaceChildren(make("p", { class: "problem" }, visible(error.message)));
    }
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const next = { ...readAddress(), vs: field.value.trim() };
    history.replaceState(history.state, "", addressOf(next));
    compare();
  });
  if (state.vs && !state.like) compare();
  const like = make("button", {
    class: "button", type: "button",
    onclick: () => go({ q: "", picture: "", like: hit.id, off: [], open: "", vs: "" }),
  }, "More like this");
  return make("div", {}, make("div", { class: "actions" }, state.like ? null : form, hit.own ? null : like),
    problem, place);
}

// A picture of one's own and a caption: what the caption's words choose in it.
async function explainPicture(state) {
  running?.abort();
  const picture = pictureOf(state);
  const own = { id: picture.file.name || "picture", metadata: {}, picture: picture.url, own: true };
  const asked = searchOf(state);
  showProblem(null);
  say("Explaining …");
  const found = await explain(own, state.q, state);
  if (searchOf(readAddress()) !== asked) return;
  showOnly("explained");
  shown = { search: asked, whole: null, answer: null };
  find("explained").replaceChildren(drawLarge(found));
  say("What each word of the caption chose in the picture");
}

// -- the page follows the address

let view = null;

async function render() {
  const state = readAddress();
  const gallery = galleryOf(state);
  const picture = pictureOf(state);
  fillForm(state, gallery, picture);
  const about = state.like ? `like ${state.like}` : state.q || picture?.file.name;
  document.title = about ? `${about} - chan` : "chan";
  const isSearch = state.like || (gallery.kind === "images" ? state.q && !picture : picture && !state.q);
  try {
    if (searchOf(state) !== shown.search) {
      if (isSearch) await search(state, view);
      else if (state.q && picture) await explainPicture(state);
      else {
        running?.abort();
        shown = { search: searchOf(state), whole: null, answer: null };
        const wrong = gallery.kind === "captions" && state.q && !state.picture;
        showProblem(wrong ? new Problem("This gallery holds captions. Search it with a picture.") : null);
        showStart(gallery, state);
      }
    }
    const index = shown.answer && state.open ? shown.answer.hits.findIndex((hit) => hit.id === state.open) : -1;
    if (index < 0 && view.dialog.element.open) view.dialog.element.close();
    if (index < 0 && shown.answer && state.open) say(`${visible(state.open)} is not among these hits.`);
    if (index >= 0 && !view.dialog.shows(index)) view.open(index);
  } catch (error) {
    if (error.name === "AbortError") return;
    shown = { search: "", whole: null, answer: null };
    if (!(error instanceof Problem)) throw error;
    showProblem(error);
    showOnly("");
  }
}

function fillForm(state, gallery, picture) {
  find("caption").value = state.q;
  find("caption").placeholder = !gallery.takes_captions ? "Id of a row"
    : gallery.kind === "images" ? "Describe a picture" : "Drop or paste a picture";
  for (const part of document.querySelectorAll("#file, label[for=file]")) part.hidden = !gallery.takes_pictures;
  find("gallery").value = gallery.name;
  find("k").value = state.k;
  const chip = find("picture");
  chip.hidden = !picture && !state.like;
  chip.querySelector("img").hidden = !picture || state.like;
  if (picture) chip.querySelector("img").src = picture.url;
  chip.querySelector("span").textContent = state.like ? `like ${visible(state.like)}`
    : visible(picture?.file.name || "picture");
  find("conditions").replaceChildren(...state.where.map((text) => conditionRow(text)));
  find("filters-button").textContent = state.where.length ? `Filters (${state.where.length})` : "Filters";
}

// What is asked before the server has named its galleries waits for that.
async function submit(changes = {}) {
  scrollTo(0, 0);
  const q = find("caption").value.trim(), k = Number(find("k").value) || 20;
  await begun;
  const gallery = find("gallery").value;
  const named = !galleryOf({ gallery }).takes_captions && q; // where nothing reads words, an id is typed
  return go({
    gallery, q: named ? "" : q, like: named || (q ? "" : readAddress().like), k,
    where: readConditions(), off: [], open: "", vs: "", ...changes });
}

function usePicture(file) {
  if (!file?.type.startsWith("image/")) {
    showProblem(new Problem("This is not a picture."));
    return;
  }
  pictures.push({ file, url: URL.createObjectURL(file) });
  submit({ picture: `${pictures.length - 1}-${file.name || "picture"}`, like: "" });
}

function listen() {
  find("form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  find("gallery").addEventListener("change", () => submit({ like: "" }));
  find("file").addEventListener("change", () => {
    usePicture(find("file").files[0]);
    find("file").value = "";
  });
  find("picture").querySelector("button").addEventListener("click", () => {
    find("caption").focus();
    submit({ picture: "", like: "" });
  });
  find("filters-button").addEventListener("click", () => {
    const panel = find("filters");
    panel.hidden = !panel.hidden;
    find("filters-button").setAttribute("aria-expanded", String(!panel.hidden));
    if (!panel.hidden && !find("conditions").children.length) find("conditions").append(conditionRow());
    if (!panel.hidden) find("conditions").querySelector("input").focus();
  });
  find("add").addEventListener("click", () => {
    const row = conditionRow();
    find("conditions").append(row);
    row.querySelector("input").focus();
  });
  document.addEventListener("keydown", (event) => {
    const busy = event.target.matches("input, select, textarea") || document.querySelector("dialog[open]");
    if (event.key !== "/" || busy) return;
    event.preventDefault();
    find("caption").focus();
    find("caption").select();
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    usePicture(file);
  });
  let depth = 0;
  const over = (by) => {
    depth = Math.max(0, depth + by);
    find("drop").hidden = !depth;
  };
  addEventListener("dragenter", () => over(1));
  addEventListener("dragleave", () => over(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(-depth);
    if (event.dataTransfer.files.length) usePicture(event.dataTransfer.files[0]);
  });
}

async function start() {
  const fields = [find("caption"), find("k")];
  fields[0].value = new URLSearchParams(location.search).get("q") ?? "";
  const before = fields.map((field) => field.value);
  listen();
  try {
    ({ galleries, limits } = await (await request("/v1/galleries")).json());
  } catch (error) {
    showProblem(error);
    return;
  }
  find("k").max = limits.k;
  find("gallery").replaceChildren(...galleries.map((one) => make("option", { value: one.name }, one.name)));
  find("gallery-label").hidden = galleries.length < 2;
  view = new HitsView(find("answer"), {
    opened: (index) => {
      const { id } = shown.answer.hits[index];
      const { open } = readAddress();
      if (open !== id) go({ open: id }, { replace: Boolean(open) });
    },
    closed: () => {
      if (!readAddress().open) return;
      if (history.state?.opened) history.back();
      else go({ open: "", vs: "" }, { replace: true });
    },
  });
  addEventListener("popstate", render);
  const top = document.querySelector(".top");
  const { style } = document.documentElement;
  new ResizeObserver(() => style.setProperty("--top", `${top.offsetHeight - 1}px`)).observe(top);
  if (!location.search) find("caption").focus();
  const typed = fields.map((field) => field.value); // while the galleries were asked for, which stays
  const first = render();
  fields.forEach((field, i) => {
    if (typed[i] !== before[i]) field.value = typed[i];
  });
  begin();
  await first;
}

start();
