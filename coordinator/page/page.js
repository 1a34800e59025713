// The operators' page: asks /status and /metrics, and draws what they say. No
// library: four small charts on canvases.
"use strict";

const POLL_MS = 500;
const WINDOW_MS = 5 * 60 * 1000;
const GAP_WINDOW_MS = 5000;  // of the percentiles
const MAX_SAMPLES = WINDOW_MS / POLL_MS + 10;
const KEY_NAME = "moebius-admin-key";

const $ = (id) => document.getElementById(id);
const samples = [];  // {at, running, waiting, low, high, tokens, p50, p99}
const gaps = [];     // {at, counts}: the histogram between tokens, cumulative
const spans = [];    // {from, layout}: the ribbon, by time
let status = null;
let hover = null;  // share of a chart's width
let failures = 0;

// ---- numbers ---------------------------------------------------------------

const round = (value) => value >= 100 ? Math.round(value).toLocaleString("en")
    : String(Number(value.toFixed(value >= 10 ? 1 : 2)));
const ms = (value) => value == null ? "–"
    : value >= 1000 ? `${round(value / 1000)} s` : `${round(value)} ms`;
const percent = (share) =>
    `${Number((share * 100).toFixed(share < 0.1 ? 1 : 0))} %`;
function bytes(value) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; ++unit; }
  return `${round(value)} ${units[unit]}`;
}
const clock = (at) => new Date(at).toLocaleTimeString("en-GB");
function span(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

// ---- asking ----------------------------------------------------------------

function headers() {
  const key = sessionStorage.getItem(KEY_NAME);
  return key ? {Authorization: `Bearer ${key}`} : {};
}

async function ask(path) {
  const response = await fetch(path, {headers: headers(), cache: "no-store",
                                      signal: AbortSignal.timeout(5000)});
  if (response.status === 401) throw new Error("key");
  if (!response.ok) throw new Error(`${path} says ${response.status}`);
  return response;
}

// Cumulative counts by upper bound, in milliseconds.
function gapCounts(text) {
  const counts = [];
  const line = /^moebius:inter_token_seconds_bucket\{.*?le="([^"]+)"\} (\S+)$/gm;
  for (const [, bound, count] of text.matchAll(line)) {
    counts.push([bound === "+Inf" ? Infinity : bound * 1000, Number(count)]);
  }
  return counts;
}

// Within a bucket, as Prometheus' histogram_quantile does.
function quantile(q, now, before) {
  const delta = now.map(([bound, count], i) =>
      [bound, count - (before[i] ? before[i][1] : 0)]);
  const total = delta.length ? delta[delta.length - 1][1] : 0;
  if (total <= 0) return null;
  let below = 0, lower = 0;
  for (const [bound, count] of delta) {
    if (count >= q * total) {
      if (bound === Infinity) return lower;
      const share = (q * total - below) / (count - below);
      return lower + (bound - lower) * (Number.isFinite(share) ? share : 1);
    }
    below = count;
    lower = bound;
  }
  return lower;
}

function takeGaps(at, text) {
  const counts = gapCounts(text);
  const last = gaps[gaps.length - 1];
  const total = (one) => one.length ? one[one.length - 1][1] : 0;
  // A new coordinator counts from nothing.
  if (last && total(counts) < total(last.counts)) gaps.length = 0;
  gaps.push({at, counts});
  while (gaps.length > 2 && gaps[1].at < at - GAP_WINDOW_MS) gaps.shift();
  const before = gaps[0].counts;
  return [quantile(0.5, counts, before), quantile(0.99, counts, before)];
}

// What is known of layouts before now: the end of each recent switch.
function takeLayouts() {
  const now = status.now_unix_ms;
  if (spans.length === 0) {
    const done = status.switches.recent.filter((s) => s.done).reverse();
    const begin = now - status.uptime_s * 1000;
    if (done.length > 0) spans.push({from: begin, layout: done[0].from});
    for (const one of done) spans.push({from: one.ended_unix_ms, layout: one.to});
    if (spans.length === 0) spans.push({from: begin, layout: status.layout});
  }
  const known = spans[spans.length - 1];
  if (known.layout !== status.layout) {
    const last = status.switches.last;
    const at = last && last.done && last.to === status.layout &&
               last.ended_unix_ms > known.from ? last.ended_unix_ms : now;
    spans.push({from: at, layout: status.layout});
  }
  while (spans.length > 1 && spans[1].from < now - WINDOW_MS) spans.shift();
}

async function poll() {
  try {
    const [first, second] = await Promise.all([ask("/status"), ask("/metrics")]);
    status = await first.json();
    const at = status.now_unix_ms;
    const [p50, p99] = takeGaps(at, await second.text());
    takeLayouts();
    samples.push({at, running: status.running, waiting: status.waiting,
                  low: status.policy.leave_ep_at, high: status.policy.leave_tp_at,
                  tokens: status.tokens_per_s, p50, p99});
    while (samples.length > MAX_SAMPLES) samples.shift();
    failures = 0;
    show();
  } catch (error) {
    ++failures;
    if (error.message === "key") return askForKey("That key is not known here.");
    pill("bad", "no answer");
    $("facts").textContent = "asking again";
  }
  setTimeout(poll, Math.min(POLL_MS * 2 ** Math.min(failures, 3), 4000));
}

// ---- text ------------------------------------------------------------------

function pill(kind, text) {
  $("state").className = `pill ${kind}`;
  $("state").textContent = text;
}

function cells(row, values) {
  for (const [text, kind] of values) {
    const cell = row.insertCell();
    cell.textContent = text;
    if (kind) cell.className = kind;
  }
}

function showTiles() {
  const {policy, limits, use, switches} = status;
  const last = samples[samples.length - 1];
  $("tile-layout").textContent = status.layout.toUpperCase();
  $("tile-layout-more").textContent = status.switch
      ? `to ${status.switch.to.toUpperCase()}: ${status.switch_state}`
      : status.layout_choice === "auto" ? "the load decides" : "set by hand";
  $("tile-flight").textContent = status.running;
  $("tile-flight-more").textContent =
      `${status.waiting} waiting, limit ${limits.max_running}`;
  $("tile-tokens").textContent = round(status.tokens_per_s);
  $("tile-tokens-more").textContent = `${round(status.steps_per_s)} steps a second`;
  $("tile-gap").textContent = ms(last.p50);
  $("tile-gap-more").textContent = `p99 ${ms(last.p99)}`;
  $("tile-kv").textContent = percent(use.kv);
  $("tile-kv-more").textContent = status.kv.map(
      (kv) => `${kv.layout}: ${round(kv.tokens_free)} free`).join(", ");
  $("why").textContent = policy.automatic ? policy.why : "";
  $("switch-sum").textContent =
      `${switches.total} done, ${switches.refused} refused`;
}

function showState() {
  $("model").textContent = `${status.model}, ${status.workers.length} ranks`;
  const dead = status.workers.filter((worker) => !worker.connected).length;
  if (status.draining) pill("", "draining");
  else if (!status.ready) pill("bad", "not ready");
  else if (dead > 0) pill("bad", `${dead} ranks away`);
  else if (status.switch) pill("", "switching");
  else pill("good", "ready");
  const why = status.ready || status.draining ? "" : status.not_ready_reason;
  $("facts").textContent = why || status.journal.trouble ||
      `up ${span(status.uptime_s)}, term ${status.term}, ${status.version}`;
}

function showRanks() {
  const table = $("ranks");
  table.replaceChildren();
  for (const worker of status.workers) {
    cells(table.insertRow(), [
      [worker.rank], worker.connected ? ["alive", "good"] : ["away", "bad"],
      [worker.pid], [worker.incarnation, "number"],
      [`${worker.pages_free} of ${worker.pages_total} pages`, "number"]]);
  }
}

function bar(label, share, kind) {
  const line = document.createElement("div");
  line.className = `bar ${kind}`;
  const name = document.createElement("span");
  name.textContent = label;
  const room = document.createElement("div");
  const full = document.createElement("div");
  full.style.width = `${Math.min(1, share) * 100}%`;
  room.append(full);
  const value = document.createElement("span");
  value.textContent = percent(share);
  line.append(name, room, value);
  return line;
}

function showKv() {
  const lines = status.workers.map(
      (worker) => bar(`rank ${worker.rank}`, worker.kv_use, ""));
  for (const kv of status.kv) {
    const used = kv.tokens > 0 ? 1 - kv.tokens_free / kv.tokens : 0;
    lines.push(bar(`all in ${kv.layout}`, used, "room"));
  }
  $("kv").replaceChildren(...lines);
}

function showSwitches() {
  const table = $("switches");
  table.replaceChildren();
  for (const one of status.switches.recent.slice(0, 8)) {
    cells(table.insertRow(), [
      [clock(one.ended_unix_ms)],
      one.done ? [`${one.from} to ${one.to}`]
               : [`${one.from} to ${one.to}: refused`, "bad"],
      [one.cause], [ms(one.done ? one.pause_ms : null), "number"],
      [bytes(one.weight_bytes + one.kv_bytes), "number"]]);
  }
}

// ---- control ---------------------------------------------------------------

function say(text, bad) {
  $("outcome").textContent = text;
  $("outcome").className = bad ? "bad" : "";
}

// Under an id, so that it is done once, whatever breaks.
async function control(what, body) {
  const random = crypto.getRandomValues(new Uint32Array(3));
  const operation = `page-${[...random].map((n) => n.toString(36)).join("")}`;
  say("…", false);
  try {
    const response = await fetch(`/admin/${what}`, {
      method: "POST",
      headers: {"Content-Type": "application/json", ...headers()},
      body: JSON.stringify({operation_id: operation,
                            expected_instance_id: status.instance_id, ...body})});
    const answer = await response.json();
    if (answer.error) return say(answer.error.message, true);
    return answer;
  } catch (error) {
    say(`no answer: ${error.message}`, true);
  }
  return null;
}

async function switchTo(layout) {
  const answer = await control("layout", {layout});
  if (!answer) return;
  const figures = answer.done ? `: stalled ${ms(answer.pause_ms)}, moved ` +
      bytes(answer.weight_bytes + answer.kv_bytes) : "";
  say(layout === "auto" ? "The load decides from now on."
                        : `${layout.toUpperCase()}${figures}`, false);
}

async function drain() {
  if (!confirm("Take no new requests?")) return;
  if (await control("drain", {wait: false})) say("No new requests are taken.", false);
}

async function undrain() {
  if (await control("undrain", {})) say("New requests are taken again.", false);
}

function showControls() {
  const names = [...status.kv.map((kv) => kv.layout).sort(), "auto"];
  const group = $("layouts");
  if (group.dataset.names !== names.join()) {
    group.dataset.names = names.join();
    group.replaceChildren(...names.map((name) => {
      const button = document.createElement("button");
      button.textContent = name === "auto" ? "Auto" : `To ${name.toUpperCase()}`;
      button.dataset.layout = name;
      button.addEventListener("click", () => switchTo(name));
      return button;
    }));
  }
  for (const button of group.children) {
    const name = button.dataset.layout;
    button.setAttribute("aria-pressed", String(name === status.layout_choice));
    button.disabled = name !== "auto" && status.switch != null;
  }
  $("drain").disabled = status.draining;
  $("undrain").disabled = !status.draining;
}

// ---- charts ----------------------------------------------------------------

const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const LEFT = 44, BOTTOM = 18, TOP = 6, RIGHT = 4;

function begin(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "11px system-ui, 'DejaVu Sans', sans-serif";
  const now = status.now_unix_ms;
  return {pen, width, height, now,
          x: (at) => LEFT + (width - LEFT - RIGHT) * (1 - (now - at) / WINDOW_MS)};
}

function timeAxis({pen, width, height, now, x}) {
  pen.fillStyle = colour("--quiet");
  pen.textAlign = "center";
  const step = width < 500 ? 120000 : 60000;
  for (let ago = 0; ago <= WINDOW_MS; ago += step) {
    const at = Math.min(Math.max(x(now - ago), LEFT + 14), width - 14);
    pen.fillText(ago === 0 ? "now" : `−${ago / 60000} min`, at, height - 4);
  }
}

// A top that is 1, 2 or 5 times a power of ten.
function roundTop(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)));
  return [1, 2, 5, 10].find((n) => n * power >= value) * power;
}

function valueAxis(area, top, unit) {
  const {pen, width, height} = area;
  const y = (value) =>
      height - BOTTOM - (height - BOTTOM - TOP) * Math.min(value / top, 1);
  for (const share of [0, 0.5, 1]) {
    pen.fillStyle = colour("--line");
    pen.fillRect(LEFT, Math.round(y(top * share)), width - LEFT - RIGHT, 1);
    pen.fillStyle = colour("--quiet");
    pen.textAlign = "right";
    pen.fillText(unit(top * share), LEFT - 5, y(top * share) + 4);
  }
  return y;
}

// From one power of ten to another, for what lies far apart.
function decades(area, low, high, unit) {
  const {pen, width, height} = area;
  const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high));
  const y = (value) => height - BOTTOM - (height - BOTTOM - TOP) *
      Math.min(Math.max((Math.log10(value) - from) / (to - from), 0), 1);
  for (let power = from; power <= to; ++power) {
    const at = y(10 ** power);
    pen.fillStyle = colour("--line");
    pen.fillRect(LEFT, Math.round(at), width - LEFT - RIGHT, 1);
    pen.fillStyle = colour("--quiet");
    pen.textAlign = "right";
    pen.fillText(unit(10 ** power), LEFT - 5, at + 4);
  }
  return y;
}

function line({pen, x}, y, value, paint) {
  pen.strokeStyle = paint;
  pen.lineWidth = 1.75;
  pen.lineJoin = "round";
  pen.beginPath();
  let last = null;
  for (const sample of samples) {
    const v = value(sample);
    // Over a pause of the page or the group there is no line.
    const joined = last != null && v != null && sample.at - last < 5000;
    if (v != null) {
      if (joined) pen.lineTo(x(sample.at), y(v));
      else pen.moveTo(x(sample.at), y(v));
      last = sample.at;
    }
  }
  pen.stroke();
}

function crosshair(area, canvas, text) {
  if (hover === null) return;
  const {pen, width, height, now} = area;
  const at = now - (1 - hover) * WINDOW_MS;
  const nearest = samples.reduce((best, one) => best === null ||
      Math.abs(one.at - at) < Math.abs(best.at - at) ? one : best, null);
  if (nearest === null || Math.abs(nearest.at - at) > 3000) return;
  const left = area.x(nearest.at);
  pen.fillStyle = colour("--quiet");
  pen.fillRect(left, TOP, 1, height - BOTTOM - TOP);
  const label = `${clock(nearest.at)}  ${text(nearest)}`;
  const wide = pen.measureText(label).width + 12;
  const from = Math.min(Math.max(left - wide / 2, LEFT), width - wide);
  pen.fillStyle = colour("--ink");
  pen.fillRect(from, TOP, wide, 18);
  pen.fillStyle = colour("--card");
  pen.textAlign = "left";
  pen.fillText(label, from + 6, TOP + 13);
}

const layoutColour = (name) => colour(name === "ep" ? "--a" : "--b");

function drawRibbon() {
  const canvas = $("ribbon");
  const area = begin(canvas);
  const {pen, width, height, now, x} = area;
  const bottom = height - BOTTOM, top = 12;
  spans.forEach((one, i) => {
    const from = Math.max(x(one.from), LEFT);
    const to = i + 1 < spans.length ? x(spans[i + 1].from) : width - RIGHT;
    if (to <= LEFT) return;
    pen.fillStyle = layoutColour(one.layout);
    pen.fillRect(from, top, to - from, bottom - top);
    if (to - from < 26) return;
    pen.fillStyle = colour("--card");
    pen.textAlign = "left";
    pen.fillText(one.layout.toUpperCase(), from + 6, (top + bottom) / 2 + 4);
  });
  for (const one of status.switches.recent) {
    if (one.ended_unix_ms < now - WINDOW_MS) continue;
    const at = x(one.ended_unix_ms);
    pen.fillStyle = colour(one.done ? "--ink" : "--bad");
    pen.beginPath();
    pen.moveTo(at, top);
    pen.lineTo(at - 4, top - 8);
    pen.lineTo(at + 4, top - 8);
    pen.fill();
  }
  timeAxis(area);
  canvas.setAttribute("aria-label", `The layout is ${status.layout}; ` +
      `${status.switches.total} switches since the start`);
}

function drawFlight() {
  const canvas = $("flight");
  const area = begin(canvas);
  const {pen, width} = area;
  const {leave_ep_at: low, leave_tp_at: high} = status.policy;
  const most = samples.reduce((top, s) => Math.max(top, s.running, s.waiting), 0);
  const y = valueAxis(area, roundTop(Math.max(most, high * 1.3, 1)), round);
  pen.fillStyle = colour("--band");
  pen.fillRect(LEFT, y(high), width - LEFT - RIGHT, Math.max(y(low) - y(high), 1));
  line(area, y, (s) => s.waiting, colour("--b"));
  line(area, y, (s) => s.running, colour("--a"));
  timeAxis(area);
  crosshair(area, canvas, (s) => `${s.running} running, ${s.waiting} waiting`);
  canvas.setAttribute("aria-label", `${status.running} streams in flight, ` +
      `${status.waiting} waiting; crossover from ${low} to ${high}`);
}

function drawTokens() {
  const canvas = $("tokens");
  const area = begin(canvas);
  const most = samples.reduce((top, s) => Math.max(top, s.tokens), 1);
  const y = valueAxis(area, roundTop(most), round);
  line(area, y, (s) => s.tokens, colour("--a"));
  timeAxis(area);
  crosshair(area, canvas, (s) => `${round(s.tokens)} a second`);
  canvas.setAttribute("aria-label", `${round(status.tokens_per_s)} tokens a second`);
}

function drawGap() {
  const canvas = $("gap");
  const area = begin(canvas);
  const {pen, height, now, x} = area;
  const stalls = status.switches.recent.filter(
      (one) => one.done && one.ended_unix_ms > now - WINDOW_MS);
  const values = [...samples.flatMap((s) => [s.p50, s.p99]),
                  ...stalls.map((one) => one.pause_ms)].filter((v) => v > 0);
  const y = decades(area, Math.min(1, ...values), Math.max(11, ...values), ms);
  pen.fillStyle = colour("--bad");
  for (const one of stalls) {
    const top = y(one.pause_ms);
    pen.fillRect(x(one.ended_unix_ms) - 1.5, top, 3, height - BOTTOM - top);
  }
  line(area, y, (s) => s.p99, colour("--b"));
  line(area, y, (s) => s.p50, colour("--a"));
  timeAxis(area);
  crosshair(area, canvas, (s) => `p50 ${ms(s.p50)}, p99 ${ms(s.p99)}`);
  const last = samples[samples.length - 1];
  canvas.setAttribute("aria-label",
                      `Time between tokens: p50 ${ms(last.p50)}, p99 ${ms(last.p99)}`);
}

function draw() {
  drawRibbon();
  drawFlight();
  drawTokens();
  drawGap();
}

function show() {
  $("main").hidden = false;
  $("key-form").hidden = true;
  showState();
  showTiles();
  showControls();
  showRanks();
  showKv();
  showSwitches();
  draw();
}

// ---- begin -----------------------------------------------------------------

function askForKey(note) {
  $("main").hidden = true;
  $("key-form").hidden = false;
  $("key-note").textContent = note;
  pill("", "locked");
  $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY_NAME, $("key").value.trim());
  poll();
});
$("drain").addEventListener("click", drain);
$("undrain").addEventListener("click", undrain);
for (const id of ["flight", "tokens", "gap"]) {
  const canvas = $(id);
  canvas.addEventListener("pointermove", (event) => {
    const inside = canvas.clientWidth - LEFT - RIGHT;
    hover = (event.offsetX - LEFT) / inside;
    if (status) draw();
  });
  canvas.addEventListener("pointerleave", () => {
    hover = null;
    if (status) draw();
  });
}
window.addEventListener("resize", () => { if (status) draw(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener(
    "change", () => { if (status) draw(); });

if (document.documentElement.dataset.keyed === "yes" &&
    !sessionStorage.getItem(KEY_NAME)) {
  askForKey("It stays in this tab.");
} else {
  poll();
}
