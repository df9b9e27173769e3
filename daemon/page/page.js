// The page of a serving replica: what its bank holds, and a pad to draw digits on.
//
// All addresses are relative, so the page also works behind a proxy that puts it under a prefix.

import { TOKEN_KEY, byId, element, isToken, plain, say, show, withToken } from "./parts.js";

const POLL_MS = 1000;
const PATIENCE_MS = 10_000; // a request that takes longer counts as not answered
const SHOWN_MASKS = 50;
const CHARTED_MASKS = 6;
const SHOWN_LABELS = 12;
const ASK_EVERY_MS = 200; // at most five answers a second while drawing

const FIRM = "\u00a0"; // between a number and its unit

// ---------------------------------------------------------------- text and numbers

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const count = (value) => (isNumber(value) ? grouped.format(value) : "–");
const fixed = (value, digits) => (isNumber(value) ? value.toFixed(digits) : "–");
const percent = (value) => (isNumber(value) ? `${(100 * value).toFixed(1)} %` : "–");
const share = (value) => `${100 * Math.min(1, Math.max(0, isNumber(value) ? value : 0))}%`;

function plural(n, one, many) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

function ago(then, now) {
  if (!isNumber(then) || then <= 0) return "never";
  const seconds = Math.round((now - then) / 1000);
  if (seconds < 2) return "just now";
  if (seconds < 120) return `${seconds} s ago`;
  if (seconds < 2 * 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 2 * 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${count(Math.floor(seconds / 86_400))} days ago`;
}

function span(seconds) {
  return seconds < 120 ? `${Math.round(seconds)}${FIRM}s` : `${Math.round(seconds / 60)}${FIRM}min`;
}

// ---------------------------------------------------------------- elements

function drawing(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function mark(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

function putInOrder(parent, nodes) {
  nodes.forEach((node, place) => {
    if (parent.children[place] !== node) parent.insertBefore(node, parent.children[place] ?? null);
  });
  while (parent.children.length > nodes.length) parent.lastChild.remove();
}

// ---------------------------------------------------------------- the server

class NoAnswer extends Error {}
class Refused extends Error {}
class TokenNeeded extends Error {}

async function ask(path, { body, signal } = {}) {
  const token = sessionStorage.getItem(TOKEN_KEY);
  const headers = withToken({ accept: "application/json" });
  if (body) headers["content-type"] = "application/json";
  const signals = [AbortSignal.timeout(PATIENCE_MS), ...(signal ? [signal] : [])];
  const request = { method: body ? "POST" : "GET", headers, cache: "no-store", signal: AbortSignal.any(signals) };
  if (body) request.body = JSON.stringify(body);
  let response, text;
  try {
    response = await fetch(path, request);
    text = await response.text();
  } catch {
    throw new NoAnswer("The server does not answer.");
  }
  if (response.status === 401) {
    askForToken(token);
    throw new TokenNeeded("The server asks for a token.");
  }
  let said;
  try {
    said = JSON.parse(text);
  } catch {
    said = null;
  }
  if (!response.ok) {
    const reason = typeof said?.error === "string" ? plain(said.error) : "";
    throw new Refused(reason || `The server answers with status ${response.status}.`);
  }
  if (said === null || typeof said !== "object") throw new Refused("The server's answer is no JSON object.");
  return { said, serverTime: Date.parse(response.headers.get("date") ?? "") };
}

function askForToken(refusedToken) {
  // Whatever was asked with an older token than the one at hand says nothing about that one.
  if (refusedToken !== sessionStorage.getItem(TOKEN_KEY)) return;
  sessionStorage.removeItem(TOKEN_KEY);
  show(byId("token-refused"), Boolean(refusedToken));
  show(byId("main"), false);
  show(byId("connection"), false);
  if (byId("token-form").hidden) {
    show(byId("token-form"), true);
    byId("token").focus();
  }
  setReadiness("Token needed", "");
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = byId("token").value.trim();
  if (!isToken(token)) {
    show(byId("token-refused"), true);
    return;
  }
  sessionStorage.setItem(TOKEN_KEY, token);
  byId("token").value = "";
  show(byId("token-refused"), false);
  show(byId("token-form"), false);
  setReadiness("Loading", "");
  poll();
});

// ---------------------------------------------------------------- polling

let polling = false;
let timer = 0;
let answeredAt = null; // performance.now() of the last answer
let bank = null; // the last overview
let now = Date.now(); // the server's clock

async function poll() {
  clearTimeout(timer);
  if (polling || document.hidden || !byId("token-form").hidden) return;
  polling = true;
  const started = performance.now();
  try {
    const { said, serverTime } = await ask("overview");
    now = said.now_ms ?? (Number.isNaN(serverTime) ? Date.now() : serverTime);
    showOverview(said);
    answeredAt = performance.now();
    found();
  } catch (error) {
    if (!(error instanceof TokenNeeded)) lost(error);
  } finally {
    polling = false;
  }
  timer = setTimeout(poll, Math.max(0, POLL_MS - (performance.now() - started)));
}

function found() {
  show(byId("connection"), false);
  show(byId("main"), true);
  const wasAway = document.body.classList.contains("away");
  document.body.classList.remove("away");
  if (wasAway) wantAnswer(); // what was drawn meanwhile had no answer
}

function lost(error) {
  const known = error instanceof NoAnswer || error instanceof Refused;
  const text = known ? error.message : "The server's answer cannot be read.";
  show(byId("connection"), true);
  say(byId("connection-text"), text);
  const last = answeredAt === null ? "" : ` What you see is ${span((performance.now() - answeredAt) / 1000)} old.`;
  say(byId("connection-age"), `Trying again every second.${last}`);
  document.body.classList.add("away");
  setReadiness(error instanceof NoAnswer ? "No answer" : "Trouble", "bad");
}

document.addEventListener("visibilitychange", poll);

// ---------------------------------------------------------------- the bank at a glance

function setReadiness(text, kind) {
  say(byId("readiness"), text);
  const wanted = kind ? `pill ${kind}` : "pill";
  if (byId("readiness").className !== wanted) byId("readiness").className = wanted;
}

function showOverview(overview) {
  bank = overview;
  const masks = overview.mask_stats.map(withTotal);
  say(byId("bank"), plain(overview.bank));
  document.title = `${plain(overview.bank, 60)} · supsup-daemon`;
  showGlance(overview);
  const slots = chooseSlots(masks);
  showTraffic(masks, slots, overview.traffic_interval_s);
  showMasks(masks, slots, overview.traffic_interval_s);
  showDecisions(overview.decisions);
  showPadOrNot(overview.network.input_shape);
}

function withTotal(stats) {
  const traffic = (stats.traffic ?? []).map((rows) => (isNumber(rows) ? rows : 0));
  return { ...stats, traffic, total: traffic.reduce((sum, rows) => sum + rows, 0) };
}

function showGlance(overview) {
  setReadiness(overview.ready ? "Ready" : "Not ready", overview.ready ? "good" : "bad");
  const { architecture, input_shape: shape, classes } = overview.network;
  const weights = overview.fingerprint ? ` · weights ${plain(overview.fingerprint).slice(0, 12)}` : "";
  const input = shape.map(count).join(" × ");
  say(byId("network"), `${plain(architecture)} · ${input} · ${plural(classes, "class", "classes")}${weights}`);
  mark(byId("network"), "title", `Fingerprint of the weights: ${plain(overview.fingerprint ?? "none")}`);
  say(byId("version"), count(overview.version));
  say(byId("masks"), count(overview.masks));
  say(byId("budget"), count(overview.budget));
  byId("masks-bar").style.width = share(overview.masks / overview.budget);
  const over = isNumber(overview.staleness_s) && overview.staleness_s > overview.staleness_limit_s;
  say(byId("staleness"), `${fixed(overview.staleness_s, 1)} s`);
  const limit = `${fixed(overview.staleness_limit_s, 0)}${FIRM}s`;
  say(byId("staleness-limit"), over ? `over the limit of ${limit}` : `limit ${limit}`);
  byId("staleness-tile").classList.toggle("over", over);
  say(byId("answered"), count(overview.requests.answered));
  say(byId("rows"), plural(overview.requests.rows, "row", "rows"));
  say(byId("refused"), count(overview.requests.refused));
  say(byId("failed"), count(overview.requests.failed));
  const reasons = Object.entries(overview.reasons ?? {});
  showLines(byId("reasons"), reasons.map(([name, sentence]) => `${plain(name)}: ${plain(sentence)}`));
}

function showLines(list, lines) {
  while (list.children.length < lines.length) list.append(element("li"));
  while (list.children.length > lines.length) list.lastChild.remove();
  lines.forEach((line, place) => say(list.children[place], line));
  show(list, lines.length > 0);
}

// ---------------------------------------------------------------- traffic

// A mask keeps its colour as long as it is among the busiest: slot number by mask id.
let slotOf = new Map();

function chooseSlots(masks) {
  const busiest = masks.filter((mask) => mask.total > 0).sort(byTraffic).slice(0, CHARTED_MASKS).map((mask) => mask.id);
  const kept = new Map([...slotOf].filter(([id]) => busiest.includes(id)));
  const free = [...Array(CHARTED_MASKS).keys()].filter((slot) => ![...kept.values()].includes(slot));
  for (const id of busiest) if (!kept.has(id)) kept.set(id, free.shift());
  slotOf = kept;
  return kept;
}

const layers = [...Array(CHARTED_MASKS).keys(), "others"].map((slot) => {
  const look = slot === "others" ? "others" : `mask-${slot}`;
  const title = drawing("title");
  const area = drawing("path", { class: `area ${look}` }, title);
  const name = element("span");
  const rows = element("span", { className: "light" });
  const entry = element("li", { hidden: true, "data-testid": "legend-entry" });
  entry.append(element("span", { className: `swatch ${look}`, "aria-hidden": "true" }), name, " ", rows);
  return { slot, area, title, entry, name, rows };
});
const gridLines = [0.5, 40, 80, 120].map((y) => drawing("path", { class: "grid-line", d: `M0 ${y}H600` }));
byId("traffic").append(...gridLines, ...layers.map((layer) => layer.area));
byId("legend").append(...layers.map((layer) => layer.entry));

function showTraffic(masks, slots, interval) {
  const length = Math.max(2, ...masks.map((mask) => mask.traffic.length));
  const sums = new Array(length).fill(0);
  const stacked = new Map(layers.map(({ slot }) => [slot, null]));
  for (const mask of masks) {
    if (mask.total === 0) continue;
    const slot = slots.get(mask.id) ?? "others";
    const series = stacked.get(slot) ?? { ids: [], rows: new Array(length).fill(0), total: 0 };
    mask.traffic.forEach((rows, place) => (series.rows[length - mask.traffic.length + place] += rows));
    series.ids.push(mask.id);
    series.total += mask.total;
    stacked.set(slot, series);
  }
  for (const series of stacked.values()) series?.rows.forEach((rows, place) => (sums[place] += rows));
  const top = niceAbove(Math.max(...sums) / interval);
  const height = (rows) => 160 - (160 * rows) / interval / top;
  const across = (place) => (600 * place) / (length - 1);
  const floor = new Array(length).fill(0);
  for (const layer of layers) {
    const series = stacked.get(layer.slot);
    show(layer.entry, series !== null);
    mark(layer.area, "d", series === null ? "" : band(floor, series.rows, across, height));
    if (series === null) continue;
    series.rows.forEach((rows, place) => (floor[place] += rows));
    const others = plural(series.ids.length, "other mask", "other masks");
    const name = layer.slot === "others" ? others : `mask ${series.ids[0]}`;
    say(layer.name, name);
    say(layer.rows, plural(series.total, "row", "rows"));
    say(layer.title, `${name}: ${plural(series.total, "row", "rows")}`);
  }
  const busy = Math.max(...sums) > 0;
  show(byId("traffic-none"), !busy);
  say(byId("traffic-top"), busy ? `${top} rows a second` : "");
  say(byId("traffic-span"), `rows answered, last ${span(length * interval)}`);
  say(byId("traffic-from"), `${span(length * interval)} ago`);
  const total = sums.reduce((sum, rows) => sum + rows, 0);
  const label = `Rows answered per mask in the last ${span(length * interval)}: ${count(total)} in all`;
  mark(byId("traffic"), "aria-label", label);
}

// The outline of a band of the given rows that lies on a floor.
function band(floor, rows, across, height) {
  const point = (place, value) => `${across(place).toFixed(1)} ${height(value).toFixed(2)}`;
  const upper = rows.map((value, place) => point(place, floor[place] + value));
  const lower = floor.map((value, place) => point(place, value)).reverse();
  return `M${upper.join("L")}L${lower.join("L")}Z`;
}

// The least round number that is not below the value.
function niceAbove(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const factor = [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((candidate) => candidate * power >= value * (1 - 1e-9));
  return Number((factor * power).toPrecision(3));
}

// ---------------------------------------------------------------- the table of masks

const byTraffic = (a, b) => b.total - a.total || byUpdate(a, b);
const byUpdate = (a, b) => (b.updated_ms ?? 0) - (a.updated_ms ?? 0) || a.id - b.id;
const orders = { traffic: byTraffic, updated: byUpdate, id: (a, b) => a.id - b.id };
const rowOf = new Map(); // mask id to the cells of its row

function showMasks(masks, slots, interval) {
  const wanted = byId("filter").value.trim();
  const fitting = masks.filter((mask) => String(mask.id).startsWith(wanted));
  fitting.sort(orders[byId("sort").value]);
  const exact = fitting.findIndex((mask) => String(mask.id) === wanted);
  if (exact > 0) fitting.unshift(...fitting.splice(exact, 1));
  const shown = fitting.slice(0, SHOWN_MASKS);
  for (const mask of shown) fillRow(mask, slots.get(mask.id), interval);
  putInOrder(byId("mask-rows"), shown.map((mask) => rowOf.get(mask.id).row));
  for (const id of [...rowOf.keys()]) if (!rowOf.get(id).row.isConnected) rowOf.delete(id);
  say(byId("more"), whatIsLeftOut(masks.length, fitting.length, shown.length, wanted));
}

function whatIsLeftOut(all, fitting, shown, wanted) {
  if (all === 0) return "The bank holds no mask yet.";
  if (fitting === 0) return `No mask has a number that begins with ${plain(wanted, 20)}.`;
  if (fitting > shown) return `${count(fitting - shown)} more; type a number to find one.`;
  return wanted ? `${count(fitting)} of ${plural(all, "mask", "masks")}.` : "";
}

function fillRow(mask, slot, interval) {
  if (!rowOf.has(mask.id)) rowOf.set(mask.id, makeRow(mask.id));
  const cells = rowOf.get(mask.id);
  const look = slot === undefined ? "" : `mask-${slot}`;
  if (cells.row.className !== look) cells.row.className = look;
  say(cells.batches, count(mask.batches));
  say(cells.accuracy, percent(mask.accuracy));
  cells.bar.style.width = share(mask.accuracy);
  say(cells.entropy, fixed(mask.entropy, 2));
  say(cells.updated, ago(mask.updated_ms, now));
  if (mask.updated_ms > 0) mark(cells.updated, "title", new Date(mask.updated_ms).toLocaleString());
  say(cells.answered, count(mask.answered));
  spark(cells, mask, interval);
}

function makeRow(id) {
  const cell = (name, ...children) => element("td", { "data-testid": `mask-${name}` }, ...children);
  const row = element("tr", { "data-testid": "mask-row", "data-mask": String(id) });
  const head = element("th", { scope: "row" });
  head.append(element("span", { className: "swatch", "aria-hidden": "true" }), String(id));
  const bar = element("span");
  const accuracy = element("span", { className: "value" });
  const track = element("div", { className: "bar", "aria-hidden": "true" }, bar);
  const meter = element("div", { className: "share" }, track, accuracy);
  const cells = { row, bar, accuracy };
  for (const name of ["batches", "entropy", "updated", "answered"]) cells[name] = cell(name);
  for (const name of ["batches", "entropy", "answered"]) cells[name].className = "number";
  cells.fill = drawing("path", { class: "fill" });
  cells.edge = drawing("path", { class: "edge" });
  cells.spark = drawing("svg", { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img" });
  cells.spark.append(cells.fill, cells.edge);
  row.append(head, cells.batches, cell("accuracy", meter), cells.entropy, cells.updated, cells.answered);
  row.append(cell("traffic", cells.spark));
  return cells;
}

function spark(cells, mask, interval) {
  const most = Math.max(0, ...mask.traffic);
  const highest = Number((most / interval).toPrecision(2));
  const label = `${plural(mask.total, "row", "rows")}, at most ${highest} a second`;
  mark(cells.spark, "aria-label", most === 0 ? "no traffic" : label);
  const last = Math.max(1, mask.traffic.length - 1);
  const points = mask.traffic.map((rows, place) => {
    return `${((100 * place) / last).toFixed(1)} ${(23 - (21 * rows) / most).toFixed(1)}`;
  });
  mark(cells.edge, "d", most === 0 ? "M0 23H100" : `M${points.join("L")}`);
  mark(cells.fill, "d", most === 0 ? "" : `M0 24L${points.join("L")}L100 24Z`);
}

for (const id of ["filter", "sort"]) {
  byId(id).addEventListener("input", () => {
    if (bank !== null) showMasks(bank.mask_stats.map(withTotal), slotOf, bank.traffic_interval_s);
  });
}

// ---------------------------------------------------------------- the last decisions

let decisionsShown = "";

function showDecisions(decisions) {
  const list = byId("decisions");
  const fingerprint = JSON.stringify(decisions);
  if (fingerprint !== decisionsShown) {
    list.replaceChildren(...decisions.map(makeDecision));
    decisionsShown = fingerprint;
  }
  decisions.forEach((decision, place) => say(list.children[place].firstChild, ago(decision.time_ms, now)));
  show(byId("no-decisions"), decisions.length === 0);
}

function makeDecision(decision) {
  const when = element("time", { className: "light" });
  if (decision.time_ms > 0) {
    when.dateTime = new Date(decision.time_ms).toISOString();
    when.title = new Date(decision.time_ms).toLocaleString();
  }
  const version = element("span", { className: "light", textContent: `v${count(decision.version)}` });
  const kind = element("strong", { textContent: plain(decision.type, 40) });
  const text = element("span", { className: "text" }, kind, element("bdi", { textContent: plain(decision.text) }));
  return element("li", { "data-testid": "decision" }, when, version, text);
}

// ---------------------------------------------------------------- the drawing

const SIDE = 28; // pixels of an MNIST image
const BOX = 20; // pixels of the box that a digit fills
const PEN = 2.8; // pixels that an MNIST line is wide
const FINE = 8; // drawn so many times finer, then averaged
const PAD = 280; // the pad is drawn on as if it were so wide
const SMALLEST = 70; // what is smaller is not blown up further: a dot stays a dot

const pad = byId("pad");
const padContext = pad.getContext("2d");
const fineCanvas = element("canvas", { width: BOX * FINE, height: BOX * FINE });
const fineContext = fineCanvas.getContext("2d", { willReadFrequently: true });
let strokes = []; // each a list of points [x, y] between 0 and PAD
let keyPen = null; // where the keyboard's pen is: {x, y, down}

function trace(context, width) {
  context.lineWidth = width;
  context.lineCap = "round";
  context.lineJoin = "round";
  context.strokeStyle = "#fff";
  for (const points of strokes) {
    context.beginPath();
    context.moveTo(...points[0]);
    for (let place = 1; place < points.length - 1; place++) {
      const [[x, y], [nextX, nextY]] = [points[place], points[place + 1]];
      context.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
    }
    context.lineTo(...points.at(-1));
    context.stroke();
  }
}

// The drawing as MNIST shows digits: fitted into 20 x 20 pixels, then placed by its centre of mass into 28 x 28.
function digit() {
  const image = new Uint8Array(SIDE * SIDE);
  if (strokes.length === 0) return image;
  const box = fittedIntoBox();
  let mass = 0;
  let massX = 0;
  let massY = 0;
  box.forEach((ink, place) => {
    mass += ink;
    massX += ink * ((place % BOX) + 0.5);
    massY += ink * (Math.floor(place / BOX) + 0.5);
  });
  const shift = (moment) => Math.min(SIDE - BOX, Math.max(0, Math.round((SIDE + 1) / 2 - moment / mass)));
  const left = shift(massX);
  const above = shift(massY);
  box.forEach((ink, place) => {
    image[(above + Math.floor(place / BOX)) * SIDE + left + (place % BOX)] = Math.round(ink);
  });
  return image;
}

function fittedIntoBox() {
  const points = strokes.flat();
  const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
  const [left, right] = [xs.reduce((a, b) => Math.min(a, b)), xs.reduce((a, b) => Math.max(a, b))];
  const [above, below] = [ys.reduce((a, b) => Math.min(a, b)), ys.reduce((a, b) => Math.max(a, b))];
  const scale = (BOX - PEN) / Math.max(right - left, below - above, SMALLEST);
  const side = BOX * FINE;
  fineContext.setTransform(1, 0, 0, 1, 0, 0);
  fineContext.clearRect(0, 0, side, side);
  fineContext.setTransform(FINE * scale, 0, 0, FINE * scale, side / 2, side / 2);
  fineContext.translate(-(left + right) / 2, -(above + below) / 2);
  trace(fineContext, PEN / scale);
  const fine = fineContext.getImageData(0, 0, side, side).data;
  const box = new Float32Array(BOX * BOX);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      box[Math.floor(y / FINE) * BOX + Math.floor(x / FINE)] += fine[4 * (y * side + x) + 3]; // white's opacity
    }
  }
  return box.map((sum) => sum / FINE ** 2);
}

let painting = false;

function repaint() {
  if (painting) return;
  painting = true;
  requestAnimationFrame(() => {
    painting = false;
    const zoom = pad.width / PAD;
    padContext.setTransform(zoom, 0, 0, zoom, 0, 0);
    padContext.fillStyle = "#000";
    padContext.fillRect(0, 0, PAD, PAD);
    trace(padContext, (PEN * PAD) / SIDE);
    if (keyPen !== null) {
      padContext.lineWidth = 2;
      padContext.strokeStyle = keyPen.down ? "#ffcf80" : "#80b2ff";
      padContext.beginPath();
      padContext.arc(keyPen.x, keyPen.y, 10, 0, 2 * Math.PI);
      padContext.stroke();
    }
    show(byId("pad-hint"), strokes.length === 0 && keyPen === null);
  });
}

function drawn() {
  repaint();
  showSent();
  wantAnswer();
}

function position(event) {
  const box = pad.getBoundingClientRect();
  const inside = (value) => Math.min(PAD, Math.max(0, value));
  const x = ((event.clientX - box.left) / box.width) * PAD;
  const y = ((event.clientY - box.top) / box.height) * PAD;
  return [inside(x), inside(y)];
}

let pointer = null;

pad.addEventListener("pointerdown", (event) => {
  if (pointer !== null || event.button !== 0) return;
  pointer = event.pointerId;
  pad.setPointerCapture(pointer);
  keyPen = null;
  strokes.push([position(event)]);
  drawn();
});

pad.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer) return;
  const moves = event.getCoalescedEvents?.() ?? [];
  strokes.at(-1)?.push(...(moves.length > 0 ? moves : [event]).map(position));
  drawn();
});

for (const name of ["pointerup", "pointercancel"]) {
  pad.addEventListener(name, (event) => {
    if (event.pointerId === pointer) pointer = null;
  });
}

const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

pad.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || pointer !== null) return;
  if (event.key === "Escape") clear();
  else if (event.key === " ") setKeyPen();
  else if (event.key in arrows) moveKeyPen(arrows[event.key], event.shiftKey ? 3 : 12);
  else return;
  event.preventDefault();
});

pad.addEventListener("blur", () => {
  keyPen = null;
  repaint();
});

function setKeyPen() {
  keyPen ??= { x: PAD / 2, y: PAD / 2, down: false };
  keyPen.down = !keyPen.down;
  if (keyPen.down) strokes.push([[keyPen.x, keyPen.y]]);
  drawn();
}

function moveKeyPen([right, down], far) {
  keyPen ??= { x: PAD / 2, y: PAD / 2, down: false };
  keyPen.x = Math.min(PAD, Math.max(0, keyPen.x + right * far));
  keyPen.y = Math.min(PAD, Math.max(0, keyPen.y + down * far));
  if (keyPen.down) strokes.at(-1).push([keyPen.x, keyPen.y]);
  if (keyPen.down) drawn();
  else repaint();
}

function clear() {
  strokes = [];
  if (keyPen !== null) keyPen.down = false;
  pointer = null;
  question += 1;
  wanted = false;
  show(byId("answer"), false);
  say(byId("answer-said"), "");
  drawError("");
  repaint();
  showSent();
}

byId("clear").addEventListener("click", clear);

function showPadOrNot(shape) {
  const fits = shape.length === 2 && shape.every((side) => side === SIDE);
  show(byId("pad-area"), fits);
  show(byId("no-pad"), !fits);
  byId("columns").classList.toggle("no-pad", !fits);
  const input = shape.map(count).join(" × ");
  if (!fits) say(byId("no-pad"), `This bank takes inputs of ${input}. One can only draw for banks of 28 × 28 images.`);
}

// ---------------------------------------------------------------- the order of the pixels

const ordersKnown = new Map(); // "seed task" to its order
let orderTimer = 0;
let orderRequest = null;

function chosenOrder() {
  if (byId("order").value === "none") return null;
  const whole = (field) => (/^\d{1,15}$/.test(field.value) ? field.value : null);
  const [task, seed] = [byId("task"), byId("seed")].map(whole);
  mark(byId("task"), "aria-invalid", String(task === null));
  mark(byId("seed"), "aria-invalid", String(seed === null));
  return task === null || seed === null ? undefined : `seed=${seed}&task=${task}`;
}

// The image as it is sent; undefined while its order is not known.
function sentImage() {
  const image = digit();
  const order = chosenOrder();
  if (order === null) return image;
  return ordersKnown.get(order)?.map((from) => image[from]);
}

function orderChanged({ wait }) {
  const permuted = byId("order").value !== "none";
  byId("task").disabled = !permuted;
  byId("seed").disabled = !permuted;
  clearTimeout(orderTimer);
  orderRequest?.abort();
  question += 1; // what is on its way was asked about another order
  const order = chosenOrder();
  if (order === undefined) drawError("Task and seed are whole numbers from 0.");
  else if (order === null || ordersKnown.has(order)) orderIsThere();
  else orderTimer = setTimeout(fetchOrder, wait, order);
}

async function fetchOrder(order) {
  orderRequest = new AbortController();
  const { signal } = orderRequest;
  try {
    const { said } = await ask(`permutation?${order}`, { signal });
    if (!isOrder(said.order)) throw new Refused("The server's answer is no permutation of 784 pixels.");
    if (ordersKnown.size > 50) ordersKnown.clear();
    ordersKnown.set(order, said.order);
    if (!signal.aborted) orderIsThere();
  } catch (error) {
    if (!signal.aborted && !(error instanceof TokenNeeded)) drawError(error.message);
  }
}

function isOrder(order) {
  if (!Array.isArray(order) || order.length !== SIDE * SIDE || new Set(order).size !== order.length) return false;
  return order.every((from) => Number.isInteger(from) && from >= 0 && from < SIDE * SIDE);
}

function orderIsThere() {
  drawError("");
  showSent();
  wantAnswer();
}

byId("order").addEventListener("input", () => orderChanged({ wait: 0 }));
byId("task").addEventListener("input", () => orderChanged({ wait: 250 }));
byId("seed").addEventListener("input", () => orderChanged({ wait: 250 }));
byId("inference").addEventListener("input", () => {
  question += 1;
  wantAnswer();
});

function showSent() {
  const image = sentImage();
  if (image === undefined) return;
  const context = byId("sent").getContext("2d");
  const pixels = context.createImageData(SIDE, SIDE);
  image.forEach((ink, place) => pixels.data.set([ink, ink, ink, 255], 4 * place));
  context.putImageData(pixels, 0, 0);
}

// ---------------------------------------------------------------- the answer

let wanted = false; // something has changed since the last question
let asking = false;
let askTimer = 0;
let askedAt = -Infinity;
let question = 0; // answers to older questions are dropped

function wantAnswer() {
  wanted = strokes.length > 0;
  askNext();
}

function askNext() {
  if (asking || !wanted || askTimer !== 0) return;
  askTimer = setTimeout(() => {
    askTimer = 0;
    askNow();
  }, Math.max(0, askedAt + ASK_EVERY_MS - performance.now()));
}

async function askNow() {
  const image = sentImage();
  if (!wanted || image === undefined || bank === null) return;
  wanted = false;
  asking = true;
  askedAt = performance.now();
  const mine = ++question;
  const input = { name: "x", shape: [1, SIDE, SIDE], datatype: "UINT8", data: [...image] };
  const body = { inputs: [input], parameters: { inference: byId("inference").value } };
  try {
    const { said } = await ask(`v2/models/${encodeURIComponent(bank.bank)}/infer`, { body });
    if (mine === question) showAnswer(said, performance.now() - askedAt);
  } catch (error) {
    if (mine === question && !(error instanceof TokenNeeded)) noAnswer(error);
  } finally {
    asking = false;
    askNext();
  }
}

function showAnswer(said, took) {
  const outputs = Object.fromEntries(said.outputs.map((output) => [output.name, output.data]));
  const [label, task, confidence, novel] = ["label", "task", "confidence", "novel"].map((name) => outputs[name][0]);
  say(byId("label"), count(label));
  say(byId("answer-task"), task >= 0 ? String(Number(task)) : "none");
  say(byId("confidence"), percent(confidence));
  byId("confidence-bar").style.width = share(confidence);
  show(byId("threshold-mark"), isNumber(bank.threshold));
  byId("threshold-mark").style.left = share(bank.threshold);
  say(byId("threshold"), isNumber(bank.threshold) ? `novel below ${percent(bank.threshold)}` : "");
  show(byId("novel"), Boolean(novel));
  byId("answer").classList.toggle("novel", Boolean(novel));
  showProbabilities(outputs.probabilities, label);
  say(byId("answered-by"), `Answered by version ${plain(said.model_version, 20)} in ${Math.round(took)} ms.`);
  show(byId("answer"), true);
  drawError("");
  if (pointer === null && !wanted) {
    const sure = `confidence ${percent(confidence)}${novel ? ", novel: no mask is confident" : ""}`;
    say(byId("answer-said"), `Label ${count(label)}, mask ${byId("answer-task").textContent}, ${sure}.`);
  }
}

// The bars in the order of the labels; of many labels only the likeliest.
function showProbabilities(probabilities, label) {
  const list = byId("probabilities");
  const labels = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, SHOWN_LABELS);
  labels.sort((a, b) => a - b);
  while (list.children.length < labels.length) list.append(makeProbability());
  while (list.children.length > labels.length) list.lastChild.remove();
  labels.forEach((each, place) => {
    const [name, track, value] = list.children[place].children;
    say(name, String(each));
    track.firstChild.style.width = share(probabilities[each]);
    say(value, percent(probabilities[each]));
    list.children[place].classList.toggle("best", each === label);
  });
}

function makeProbability() {
  const track = element("span", { className: "track", "aria-hidden": "true" }, element("span"));
  const value = element("span", { className: "value" });
  return element("li", { "data-testid": "probability" }, element("span"), track, value);
}

function noAnswer(error) {
  const known = error instanceof NoAnswer || error instanceof Refused;
  show(byId("answer"), false);
  say(byId("answer-said"), "");
  drawError(known ? error.message : "The server's answer cannot be read.");
}

function drawError(text) {
  say(byId("draw-error"), text);
  show(byId("draw-error"), text !== "");
}

// ---------------------------------------------------------------- start

orderChanged({ wait: 0 }); // browsers bring back what was chosen before a reload
repaint();
poll();
