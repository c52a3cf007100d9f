// The live page: figures come once a second, over a stream that the browser opens again whenever it ends.
import {dot, histogram, make, mapOn, overTime} from "./charts.js";

const by = (id) => document.getElementById(id);
const put = (id, ...children) => by(id).replaceChildren(...children);
const count = (n) => Math.round(n).toLocaleString("en");
const percent = (share, digits = 1) => (share === null ? "none" : `${(100 * share).toFixed(digits)}%`);
const milliseconds = (value) => (value === null ? "none" : `${value.toPrecision(3)} ms`);
const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString();
const MARKS = ["false-alarm", "attack", "unsure"];
const listed = {last: new Map(), named: new Map(), kept: new Map()};
let drawMap = null, served = null, reviewed = -1, reviewing = null, latest = [], turn = 0;

// What is shown already stays the same element in its place: what is being read stays open, and pressed where it is.
function list(id, items, name, draw) {
  const before = listed[id], now = new Map();
  for (const one of items) {
    let called = name(one);
    while (now.has(called)) called += " again";
    now.set(called, before.get(called) ?? draw(one));
  }
  for (const [called, element] of before) if (!now.has(called)) element.remove();
  let next = by(id).firstElementChild;
  for (const element of now.values()) {
    if (element === next) next = next.nextElementSibling;
    else by(id).insertBefore(element, next);
  }
  listed[id] = now;
  return [...now.values()];
}

function table(id, caption, head, rows) {
  const line = (cells, tag) => make("tr", {}, ...cells.map((cell, i) => (i || tag === "th" ? make(tag, tag === "th" ? {scope: "col"} : {}, cell) : make("th", {scope: "row"}, cell))));
  put(id, make("caption", {}, caption), make("thead", {}, line(head, "th")), make("tbody", {}, ...rows.map((row) => line(row, "td"))));
}

function totals(now) {
  const last = now.points[now.points.length - 1], screened = Object.values(now.verdicts).reduce((a, b) => a + b, 0);
  const shown = {
    "images screened": count(screened), "images a second": last.images_per_second.toFixed(1), waiting: count(now.queue),
    "answered within, half": milliseconds(now.milliseconds.p50), "answered within, 99%": milliseconds(now.milliseconds.p99),
    suspect: count(now.verdicts.SUSPECT), adversarial: count(now.verdicts.ADVERSARIAL), unscreened: count(now.unscreened), blocked: count(now.blocked),
  };
  put("totals", ...Object.entries(shown).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

function flagged(now) {
  const at = now.points.map((point) => point.at);
  put("flagged", ...Object.entries(now.levels).map(([level, target]) => {
    const shares = now.points.map((point) => point.flagged[level]), last = shares[shares.length - 1];
    const outside = last.share !== null && last.share > last.high;
    const words = make("p", outside ? {class: "beyond"} : {}, last.share === null ? "no image in the last minute" :
      `${percent(last.share)} now; clean traffic: ${percent(last.low)} to ${percent(last.high)}${outside ? "; above its band" : ""}`);
    return make("div", {"data-level": level, "data-beyond": outside}, make("h3", {}, `${level}: ${percent(target)} of clean images are expected`),
      overTime(at, shares.map(({share}) => share), {label: `share of images flagged as ${level} over time`, yLabel: "share of images", band: shares.map(({low, high}) => [low, high]), shares: true}), words);
  }));
  put("traffic", overTime(at, now.points.map((point) => point.images_per_second), {label: "images a second over time", yLabel: "images / s", kind: "traffic"}));
}

const said = (one, more = "") => [
  make("b", {}, `${one.label} (${percent(one.probability)}): ${one.verdict}`),
  make("div", {}, `p = ${one.p_value.toPrecision(2)}, ${one.client}, ${clock(one.at)}, request ${one.request_id}${more}`),
];
const why = (one) => make("details", {}, make("summary", {}, "what each detector saw"), make("ul", {}, ...one.words.slice(1).map((line) => make("li", {}, line))));

function last(now) {
  by("none-flagged").hidden = now.flagged.length > 0;
  list("last", now.flagged, JSON.stringify, (one) => make("li", {class: one.verdict}, ...said(one), why(one)));
}

const post = (path, word) => fetch(path, {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(word)});

async function mark(id, word) {
  await post(`live/review/${id}/mark`, word);
  reviewed = -1;
}

function probing(now) {
  by("probing").hidden = now.probing === null;
  if (now.probing === null) return;
  by("none-named").hidden = now.probing.length > 0;
  list("named", now.probing, JSON.stringify, (one) => {
    const button = make("button", {type: "button"}, "let off");
    button.addEventListener("click", () => post("live/probing/lift", one.client));
    const kept = make("button", {type: "button"}, "what is kept of it");
    kept.hidden = !now.reviewing;
    kept.addEventListener("click", () => reviewOf(one.client, now));
    return make("li", {class: "ADVERSARIAL"}, make("b", {}, one.client), make("div", {}, `${one.seen}, after ${count(one.asked)} images, ${clock(one.at)}`), button, kept);
  });
}

async function reviewOf(client, now) {
  [reviewing, reviewed] = [client, -1];
  await review(now);
  by("review").scrollIntoView();
}

function waiting(one) {
  return make("li", {class: one.verdict},
    make("img", {src: `live/review/${one.id}/image`, alt: `request ${one.request_id}`, loading: "lazy", width: 96, height: 96}),
    ...said(one, one.why === "sample" ? ", drawn by chance" : ""),
    make("div", {}, ...MARKS.map((word) => {
      const button = make("button", {type: "button", value: word}, word.replace("-", " "));
      button.addEventListener("click", () => mark(one.id, word));
      return button;
    })), why(one));
}

async function review(now) {
  by("review").hidden = !now.reviewing;
  if (!now.reviewing || reviewed === now.kept) return;
  reviewed = now.kept;
  by("of-whom").hidden = reviewing === null;
  by("whom").textContent = `Only those of ${reviewing}.`;
  const mine = ++turn;
  const kept = await (await fetch(`live/review${reviewing === null ? "" : `?client=${encodeURIComponent(reviewing)}`}`)).json();
  if (mine !== turn) return; // asked again meanwhile, perhaps of another client
  const shown = list("kept", kept, (one) => one.id, waiting);
  kept.forEach((one, i) => shown[i].querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", button.value === one.mark)));
}

async function map(now) {
  if (now.bundle && now.bundle.id !== served) {
    served = now.bundle.id;
    const found = await (await fetch("live/map")).json();
    drawMap = found && mapOn(by("map"), found, now.class_colours);
    by("map").closest("section").hidden = !found;
    if (found) put("legend", ...found.class_names.map((name, i) => make("span", {}, dot(now.class_colours[i % now.class_colours.length]), name)));
  }
  latest = now.latest;
  if (drawMap) drawMap(latest);
}

function show(now) {
  by("state").textContent = now.state;
  by("state").className = now.state === "serving" ? "serving" : "other";
  put("bundle", now.bundle ? `${now.bundle.classifier}, bundle ${now.bundle.id.slice(0, 12)} by ${now.bundle.engine}, calibrated ${new Date(1000 * now.calibrated).toLocaleDateString()}${now.candidate ? `; candidate ${now.candidate.id.slice(0, 12)}` : ""}` : "");
  totals(now);
  flagged(now);
  put("p-values", ...now.detectors.map((one) => histogram(one.name, one.colour, now.buckets, one.p_values)));
  last(now);
  const levels = Object.keys(now.levels);
  table("detectors", "Flags by detector", ["detector", ...levels], now.detectors.map((one) => [one.name, ...levels.map((level) => count(one.flags[level]))]));
  table("clients", "Verdicts by client", ["client", "clean", "suspect", "adversarial"],
    now.clients.map(({name, verdicts}) => [name, ...["CLEAN", "SUSPECT", "ADVERSARIAL"].map((verdict) => count(verdicts[verdict] ?? 0))]));
  table("classes", "Predictions by class", ["class", "predicted", "judged adversarial"],
    now.classes.filter((one) => one.predicted).map((one) => [one.name, count(one.predicted), count(one.adversarial)]));
  table("stages", "Times by stage, last minute", ["stage", "mean"], now.stages.map((one) => [one.name, milliseconds(one.milliseconds)]));
  map(now);
  review(now);
  probing(now);
}

by("of-all").addEventListener("click", () => [reviewing, reviewed] = [null, -1]);

const stream = new EventSource("live/events");
stream.addEventListener("message", (event) => show(JSON.parse(event.data)));
let quiet = null;
stream.addEventListener("open", () => clearTimeout(quiet));
stream.addEventListener("error", () => { clearTimeout(quiet); quiet = setTimeout(() => { by("state").textContent = "the server does not answer"; by("state").className = "other"; }, 5000); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawMap && drawMap(latest));
