// One row a layer: heads | share that goes | channels | share that goes. The nodes belong to this script; scores come as
// the prop `scores`, the selected unit as `selected`, the plan by "np-plan", with edits that are on their way laid over it
// by "np-ahead", and by "np-preview" while something is dragged. Edits leave by "np-edit".
// The channels' overlay is 1000 wide and as high as it is on the screen: an SVG that is stretched much more one way than
// the other is drawn blurred by some browsers.
const $ = (query) => element.querySelector(query), all = (query) => [...element.querySelectorAll(query)];
const KINDS = ["attention", "mlp"], NEAR = 9, NEAR_TOUCH = 22, SLIM = 9;
const CIVIDIS = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120],
  [165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56]];
let scores = null, plan = null, drag = null, cursor = {}, own = "", rowHeight = 26;

const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const percent = (share) => `${Math.round(100 * share)} %`;
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const word = (kind) => (kind === "mlp" ? "channel" : scores.unit);
const units = (kind, row) => scores.units[kind][row];
const sorted = (kind) => kind === "mlp" && scores.order === "sorted";
const edit = (detail) => document.dispatchEvent(new CustomEvent("np-edit", { detail }));
const send = (name, value) => { props.value = JSON.stringify(value); trigger(name); };

function shade(level) {
  const place = clamp(level / 249, 0, 0.9999) * 9, from = Math.floor(place), part = place - from;
  return CIVIDIS[from].map((colour, index) => colour + part * (CIVIDIS[from + 1][index] - colour));
}

function paint(canvas, cells, rows, columns) {
  [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  cells.forEach((level, index) => {
    if (level !== 255) image.data.set([...shade(level), 255], index * 4);
  });
  context.putImageData(image, 0, 0);
}

function measure() {
  const layers = scores?.layers ?? 8;
  const room = innerWidth > 640 ? Math.max(230, innerHeight - 520) : 300;
  rowHeight = clamp(Math.floor(room / layers), 5, 26);
  element.style.setProperty("--h", `${rowHeight}px`);
  element.style.setProperty("--n", layers);
  document.documentElement.style.setProperty("--np-map", `${rowHeight * layers}px`);
}

function build() {
  scores = props.scores ?? null;
  measure();
  $(".np-map").classList.toggle("np-bare", !scores);
  $(".np-map").classList.toggle("np-busy", !scores);
  if (!scores) return;
  const layers = scores.layers, every = Math.max(1, Math.ceil(14 / rowHeight));
  for (const kind of KINDS) {
    const grid = scores.grids[kind];
    grid.steps = new Uint16Array(bytes(grid.values.data).buffer);
    paint(box(kind).querySelector("canvas"), bytes(grid.cells), layers, grid.bins);
    box(kind).querySelector("svg").setAttribute("viewBox", kind === "mlp" ? `0 0 1000 ${layers * rowHeight}` : `0 0 ${grid.bins} ${layers}`);
    const name = `${word(kind)[0].toUpperCase()}${word(kind).slice(1)}s`;
    box(kind).setAttribute("aria-label", `${name}: arrow keys walk, Enter explains, K keeps, P prunes, A leaves to its score`);
  }
  all(".np-lab").forEach((lab) => {
    lab.innerHTML = Array.from({ length: layers }, (_, row) => `<button type="button" tabindex="-1" data-row="${row}">${row % every ? "" : row}</button>`).join("");
    lab.querySelector("button").tabIndex = 0;
  });
  for (const kind of KINDS) {
    $(`.np-bars[data-kind=${kind}]`).innerHTML = Array.from({ length: layers }, (_, row) => units(kind, row)
      ? `<div role="slider" tabindex="-1" data-row="${row}" aria-label="Layer ${row}, ${word(kind)}s that go" ` +
        'aria-valuemin="0" aria-valuemax="100" aria-valuenow="0" aria-orientation="horizontal"><i></i><b></b></div>'
      : "<div></div>").join("");
    $(`.np-bars[data-kind=${kind}] [role=slider]`)?.setAttribute("tabindex", "0");
  }
  $(".np-h1").textContent = `Attention ${scores.unit}s by index`;
  $(".np-h2").textContent = `MLP channels ${scores.order === "sorted" ? "by score" : "by index"}`;
  for (const name of ["view", "order"]) $(`[data-look=${name}]`).value = name === "view" ? scores.scale.view : scores.order;
  legend();
  show();
  ring();
}

const box = (kind) => $(kind === "mlp" ? ".np-channels" : ".np-heads");

function fraction(value) {
  const { view, low, high, bend } = scores.scale;
  const bent = (number) => (view === "log" ? Math.sign(number) * Math.log1p(Math.abs(number) / bend) : number);
  return clamp((bent(value) - bent(low)) / (bent(high) - bent(low)), 0, 1);
}

function legend() {
  const { view, low, high } = scores.scale, ranks = view === "rank";
  paint($(".np-map-foot canvas"), Uint8Array.from({ length: 250 }, (_, level) => level), 1, 250);
  $(".np-low").textContent = ranks ? "lowest" : `${view === "raw" ? "≤ " : ""}${low.toPrecision(3)}`;
  $(".np-high").textContent = ranks ? "highest in its layer" : `${high.toPrecision(3)} ${scores.scorer}`;
}

function gone(kind, row) {
  return plan.gone[kind][row] ?? 0;
}

function show() {
  if (!scores || !plan) return;
  const heads = scores.grids.attention.bins, slim = rowHeight < SLIM;
  let crosses = "", filled = "";
  plan.heads.forEach((text, row) => {
    if (isDropped("attention", row)) return;
    const bits = bytes(text);
    for (let column = 0; column < units("attention", row); column += 1) {
      if (!bitAt(bits, column)) continue;
      if (slim) filled += `M${column + .08} ${row + .08}h.84v.84h-.84z`;
      else crosses += `M${column} ${row}h1v1h-1zM${column + .25} ${row + .25}l.5 .5M${column + .75} ${row + .25}l-.5 .5`;
    }
  });
  all(".np-heads .np-cross").forEach((path) => path.setAttribute("d", crosses));
  $(".np-heads .np-fill").setAttribute("d", filled);
  const marks = { attention: "", mlp: "" };
  for (const [name, how] of Object.entries(plan.forced)) {
    const [row, kind, unit] = name.split(".");
    if (kind !== "attention") continue;
    marks.attention += how === "keep" ? `M${+unit + .06} ${+row + .1}h.88v.8h-.88z`
      : `M${+unit + .04} ${+row + .06}h.92v.88h-.92zM${+unit + .15} ${+row + .15}l.7 .7M${+unit + .85} ${+row + .15}l-.7 .7`;
  }
  $(".np-heads .np-forced").setAttribute("d", marks.attention);
  strips();
  edges();
  labels();
  brief();
  $(".np-cut").textContent = plan.cut === null || scores.scale.view === "rank" ? "" : `the plan cuts at ${plan.cut.toPrecision(3)}`;
}

function brief() {
  const { before, after, loss } = plan, change = ((after.parameters / before.parameters - 1) * 100).toFixed(1);
  $(".np-brief").textContent = `${after.parameters.toLocaleString("en")} parameters, ${change} %` +
    (loss === null ? "" : ` · predicted loss +${loss.toFixed(3)} nats`);
}

function strips() {
  const canvas = $(".np-strips"), bins = stripColumns(), height = 4;
  canvas.hidden = sorted("mlp");
  if (canvas.hidden || !plan.strips) return;
  [canvas.width, canvas.height] = [bins, scores.layers * height];
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  plan.strips.forEach((text, row) => {
    const bits = bytes(text);
    for (let column = 0; column < bins; column++) {
      if (bits[column >> 3] & (128 >> (column & 7))) context.fillRect(column, row * height + 2, 1, 2);
    }
  });
}

function edges() {
  const line = sorted("mlp") ? plan.gone.mlp.map((count, row) => {
    const cut = units("mlp", row) ? (1000 * count) / units("mlp", row) : 0;
    return `${row ? "L" : "M"}${cut.toFixed(1)} ${row * rowHeight}V${(row + 1) * rowHeight}`;
  }).join("") : "";
  all(".np-channels .np-edge").forEach((path) => path.setAttribute("d", line));
  $(".np-channels .np-held").setAttribute("d", sorted("mlp") ? plan.locks.filter((key) => key.endsWith(".mlp")).map((key) => {
    const row = parseInt(key);
    return `M${(1000 * gone("mlp", row)) / units("mlp", row)} ${row * rowHeight}v${rowHeight}`;
  }).join("") : "");
  for (const kind of KINDS) all(`.np-bars[data-kind=${kind}] > div`).forEach((bar, row) => units(kind, row) && fill(bar, kind, row));
}

function fill(bar, kind, row) {
  const count = gone(kind, row), share = count / units(kind, row), locked = plan.locks.includes(`${row}.${kind}`);
  bar.style.setProperty("--r", share);
  bar.classList.toggle("np-locked", locked);
  bar.classList.toggle("np-whole", isDropped(kind, row));
  bar.setAttribute("aria-valuenow", Math.round(100 * share));
  bar.setAttribute("aria-valuetext", says(kind, row, locked));
  bar.lastChild.textContent = rowHeight > 11 ? (isDropped(kind, row) ? "dropped" : `${Math.round(100 * share)}%`) : "";
}

function says(kind, row, locked = plan.locks.includes(`${row}.${kind}`)) {
  if (isDropped(kind, row)) return `dropped as a whole, all ${units(kind, row).toLocaleString("en")} go`;
  const all_ = units(kind, row), count = gone(kind, row);
  return `${percent(count / all_)}, ${(all_ - count).toLocaleString("en")} of ${all_.toLocaleString("en")} stay${locked ? ", locked" : ""}`;
}

function ring() {
  for (const kind of KINDS) box(kind).querySelector(".np-ring").setAttribute("d", "");
  const chosen = props.selected;
  if (!chosen || !scores) return;
  const [row, kind] = chosen.key.split("."), wide = kind === "mlp" ? 1000 : scores.grids.attention.bins;
  const width = kind === "mlp" ? Math.max(3, 1000 / scores.grids.mlp.bins) : 1;
  cursor[kind] = [+row, chosen.place];
  const left = clamp(chosen.place * wide - width / 2, 0, wide - width), high = kind === "mlp" ? rowHeight : 1;
  box(kind).querySelector(".np-ring").setAttribute("d", `M${left.toFixed(2)} ${row * high}h${width}v${high}h-${width}z`);
}

function describe(kind, row, place) {
  if (!units(kind, row)) return `Layer ${row}: nothing here`;
  const grid = scores.grids[kind], column = clamp(Math.floor(place * grid.bins), 0, grid.bins - 1);
  const step = grid.steps[row * grid.bins + column];
  if (step === 65535) return `Layer ${row}: nothing here`;
  const value = (grid.values.low + (step / 65534) * grid.values.span).toPrecision(4);
  if (sorted(kind)) {
    const goes = place < gone(kind, row) / units(kind, row);
    return `Layer ${row}, channels at ${(100 * place).toFixed(1)} % from the lowest\nscore ${value}, ${goes ? "go" : "stay"}`;
  }
  const per = grid.widest / grid.bins, first = Math.floor(column * per), last = Math.max(first, Math.ceil((column + 1) * per) - 1);
  const hand = plan.forced[`${row}.${kind}.${first}`];
  const goes = kind === "attention" ? bitAt(bytes(plan.heads[row]), column) : stripAt(row, place);
  return `Layer ${row}, ${word(kind)} ${first}${last > first ? ` to ${last}` : ""}\nscore ${value}, ` +
    `${goes ? "goes" : "stays"}${hand ? " by hand" : ""}`;
}

// Bits are packed with the first one highest.
const bitAt = (bits, index) => Boolean(bits[index >> 3] & (128 >> (index & 7)));

// As many as the server packs into its bits; its map_data.STRIP.
const stripColumns = () => Math.min(512, scores.grids.mlp.bins);

function stripAt(row, place) {
  return Boolean(plan.strips) && bitAt(bytes(plan.strips[row]), Math.floor(place * stripColumns()));
}

function tip(text, x, y) {
  const tag = $(".np-tip"), frame = element.getBoundingClientRect();
  tag.hidden = !text;
  if (!text) return;
  tag.textContent = text;
  tag.style.left = `${clamp(x - frame.left + 12, 0, frame.width - tag.offsetWidth - 4)}px`;
  tag.style.top = `${y - frame.top + 16}px`;
}

function placeIn(area, event) {
  const frame = area.getBoundingClientRect();
  return {
    row: clamp(Math.floor((event.clientY - frame.top) / rowHeight), 0, scores.layers - 1),
    place: clamp((event.clientX - frame.left) / frame.width, 0, .9999),
    width: frame.width,
  };
}

// Selecting: the first click explains a unit, the next one on it goes from its score to kept to pruned and back.
function pick(kind, row, place) {
  if (!units(kind, row)) return;
  const chosen = props.selected, wide = scores.grids[kind].bins;
  if (chosen?.key === `${row}.${kind}` && Math.abs(chosen.place - place) * wide < (kind === "mlp" ? 3 : .51)) return force();
  send("pick", { key: `${row}.${kind}`, place });
}

function force(how) {
  const chosen = props.selected;
  if (!chosen) return;
  const order = ["auto", "keep", "prune"], now = plan.forced[`${chosen.key}.${chosen.unit}`] ?? "auto";
  own = `Unit ${chosen.unit} of ${chosen.key}`;
  edit({ kind: "force", key: chosen.key, unit: chosen.unit, how: how ?? order[(order.indexOf(now) + 1) % 3] });
}

// Dragging: an edge of the channels, or a bar; with Shift from row to row.
function nearEdge(row, place, width, touch) {
  return sorted("mlp") && units("mlp", row) &&
    Math.abs(place - gone("mlp", row) / units("mlp", row)) * width < (touch ? NEAR_TOUCH : NEAR);
}

function start(kind, area, event) {
  const { row, place } = placeIn(area, event);
  if (!units(kind, row)) return;
  area.setPointerCapture(event.pointerId);
  drag = { kind, area, row, rows: [row], place, moved: false, x: event.clientX, range: event.shiftKey, before: plan };
  plan = structuredClone(plan);
}

function move(event) {
  if (!drag) return;
  const { row, place } = placeIn(drag.area, event), { kind } = drag;
  if (!drag.moved && Math.abs(event.clientX - drag.x) < 2 && row === drag.row) return;
  drag.moved = true;
  if (drag.range) {
    const [first, last] = [Math.min(drag.row, row), Math.max(drag.row, row)];
    drag.rows = Array.from({ length: last - first + 1 }, (_, index) => first + index).filter((each) => units(kind, each));
  }
  drag.share = place;
  for (const each of drag.rows) plan.gone[kind][each] = Math.min(Math.round(place * units(kind, each)), units(kind, each) - 1);
  edges();
  const [first] = drag.rows, last = drag.rows.at(-1);
  tip(`Layer ${first}${last > first ? ` to ${last}` : ""}: ${(100 * place).toFixed(1)} % of the ${word(kind)}s go\n${says(kind, first, false)}`,
    event.clientX, event.clientY);
  document.dispatchEvent(new CustomEvent("np-drag", { detail: cellsOf(drag) }));
}

const cellsOf = ({ rows, kind, share }) => ({ kind: "cells", cells: rows.map((row) => [`${row}.${kind}`, Math.min(share, .999).toFixed(4)]) });

function release() {
  if (!drag) return;
  const done = drag;
  drag = null;
  tip("");
  if (!done.moved) {
    plan = done.before;
    show();
    return;
  }
  own = done.rows.length > 1 ? `Layers ${done.rows[0]} to ${done.rows.at(-1)}` : `Layer ${done.rows[0]}`;
  edit(cellsOf(done));
}

function giveUp() {
  if (!drag) return;
  plan = drag.before;
  drag = null;
  tip("");
  show();
  document.dispatchEvent(new CustomEvent("np-again"));
}

for (const kind of KINDS) {
  const area = box(kind);
  area.addEventListener("pointerdown", (event) => {
    if (!plan || !scores || event.button) return;
    const { row, place, width } = placeIn(area, event);
    if (kind === "mlp" && (event.shiftKey || nearEdge(row, place, width, event.pointerType === "touch"))) start(kind, area, event);
  });
  area.addEventListener("pointermove", (event) => {
    if (!plan || !scores) return;
    if (drag) return move(event);
    const { row, place, width } = placeIn(area, event);
    area.style.cursor = kind === "mlp" && nearEdge(row, place, width, false) ? "ew-resize" : "pointer";
    tip(describe(kind, row, place), event.clientX, event.clientY);
  });
  area.addEventListener("pointerup", release);
  area.addEventListener("pointercancel", giveUp);
  area.addEventListener("pointerleave", () => { if (!drag) tip(""); });
  area.addEventListener("click", (event) => {
    if (!plan || !scores || event.shiftKey) return;
    const { row, place, width } = placeIn(area, event);
    if (kind === "mlp" && nearEdge(row, place, width, event.pointerType === "touch")) return;
    pick(kind, row, place);
  });
  area.addEventListener("keydown", (event) => walk(kind, event));
  area.addEventListener("blur", () => tip(""));

  const bars = $(`.np-bars[data-kind=${kind}]`);
  bars.addEventListener("pointerdown", (event) => {
    if (!plan || !scores || event.button) return;
    start(kind, bars, event);
  });
  bars.addEventListener("pointermove", (event) => {
    if (!plan || !scores) return;
    if (drag) return move(event);
    const { row } = placeIn(bars, event);
    tip(units(kind, row) ? `Layer ${row}: ${says(kind, row)}` : "", event.clientX, event.clientY);
  });
  bars.addEventListener("pointerup", release);
  bars.addEventListener("pointercancel", giveUp);
  bars.addEventListener("pointerleave", () => { if (!drag) tip(""); });
  bars.addEventListener("keydown", (event) => slide(kind, event));
}

wireLabels();

// Keys in a grid: arrows walk, Enter explains, K, P and A force.
let later = 0;
function walk(kind, event) {
  if (event.key === "Escape") return giveUp();
  if (!plan || !scores) return;
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const how = { k: "keep", p: "prune", a: "auto" }[event.key.toLowerCase()];
  if (how && !event.ctrlKey && !event.metaKey) return force(how);
  if (!moves && event.key !== "Enter" && event.key !== " ") return;
  event.preventDefault();
  const { bins } = scores.grids[kind], stride = event.shiftKey ? 10 : 1;
  let [row, place] = cursor[kind] ?? [0, .5 / bins];
  if (moves && cursor[kind]) {
    row = clamp(row + moves[0] * stride, 0, scores.layers - 1);
    place = clamp((Math.floor(place * bins) + moves[1] * stride + .5) / bins, .5 / bins, 1 - .5 / bins);
  }
  cursor[kind] = [row, place];
  const frame = box(kind).getBoundingClientRect();
  tip(describe(kind, row, place), frame.left + place * frame.width, frame.top + (row + 1) * rowHeight);
  // A held key walks on; the server hears of the place where it stops.
  clearTimeout(later);
  later = setTimeout(() => units(kind, row) && send("pick", { key: `${row}.${kind}`, place }), moves ? 180 : 0);
}

// Keys on a bar: the slider of one module.
function slide(kind, event) {
  if (event.key === "Escape") return giveUp();
  const bar = event.target.closest("[role=slider]");
  if (!bar || !plan) return;
  const row = Number(bar.dataset.row), count = units(kind, row), share = gone(kind, row) / count, key = `${row}.${kind}`;
  const step = Math.max(.01, 1 / count) * (event.shiftKey ? 10 : 1);
  const to = { ArrowRight: share + step, ArrowLeft: share - step, PageUp: share + .1, PageDown: share - .1, Home: 0, End: .999 }[event.key];
  own = `Layer ${row}, ${word(kind)}s`;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const sliders = [...bar.parentElement.querySelectorAll("[role=slider]")];
    const next = sliders[sliders.indexOf(bar) + (event.key === "ArrowDown" ? 1 : -1)];
    if (next) {
      bar.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    }
  } else if (to !== undefined) {
    edit({ kind: "cells", cells: [[key, clamp(to, 0, .999).toFixed(4)]], gesture: `keys ${key}` });
  } else if (event.key === "l" || event.key === "L") edit({ kind: "lock", key, on: !plan.locks.includes(key) });
  else if (event.key === "Delete" || event.key === "Backspace") edit({ kind: "cells", cells: [[key, ""]] });
  else return;
  event.preventDefault();
}

element.addEventListener("change", (event) => {
  const look = event.target.dataset?.look;
  if (look) send("look", { [look]: event.target.value });
});
element.addEventListener("click", (event) => {
  const { save, table } = event.target.dataset ?? {};
  if (save) keepPicture(save);
  if (table) send("table", table);
  if (save || table) $(".np-save").open = false;
});

function asSvg() {
  const figure = $(".np-map"), frame = figure.getBoundingClientRect(), style = getComputedStyle(document.body);
  const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;"), parts = [];
  const at = (node) => { const place = node.getBoundingClientRect(); return [place.left - frame.left, place.top - frame.top, place.width, place.height]; };
  for (const canvas of all("canvas")) {
    if (canvas.hidden || !canvas.width) continue;
    const [x, y, width, height] = at(canvas);
    parts.push(`<image href="${canvas.toDataURL()}" x="${x}" y="${y}" width="${width}" height="${height}" ` +
      'preserveAspectRatio="none" style="image-rendering:pixelated"/>');
  }
  for (const bar of all(".np-bars i")) {
    const [x, y, width, height] = at(bar);
    parts.push(`<rect x="${x}" y="${y}" width="${width}" height="${height}" fill="${bar.parentElement.classList.contains("np-locked") ? "#d99a5e" : "#9cc5de"}"/>`);
  }
  for (const svg of all("svg")) {
    const [x, y, width, height] = at(svg), [, , wide, high] = svg.getAttribute("viewBox").split(" ").map(Number);
    for (const path of svg.querySelectorAll("path")) {
      const look = getComputedStyle(path);
      if (path.getAttribute("d")) {
        parts.push(`<path d="${path.getAttribute("d")}" fill="${look.fill}" fill-opacity="${look.fillOpacity}" stroke="${look.stroke}" ` +
          `stroke-width="${look.strokeWidth}" stroke-opacity="${look.strokeOpacity}" vector-effect="non-scaling-stroke" ` +
          `transform="translate(${x} ${y}) scale(${width / wide} ${height / high})"/>`);
      }
    }
  }
  for (const text of all("h3, .np-lab span, .np-bars b, .np-map-foot > span:not(.np-key)")) {
    if (!text.textContent || !text.offsetParent) continue;
    const [x, y, , height] = at(text), look = getComputedStyle(text);
    parts.push(`<text x="${x}" y="${y + height * .72}" font-family="sans-serif" font-size="${look.fontSize}" fill="${look.color}">${escape(text.textContent)}</text>`);
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${frame.width}" height="${frame.height}">` +
    `<rect width="100%" height="100%" fill="${style.backgroundColor}"/>${parts.join("")}</svg>`;
}

function keepPicture(kind) {
  return savePicture(asSvg(), `map-${scores.scorer}`, kind);
}

function taken(next, settled) {
  if (drag) {
    // The rows under the hand are where the hand is.
    for (const row of drag.rows) if (drag.moved) next.gone[drag.kind][row] = plan.gone[drag.kind][row];
    if (settled) drag.before = structuredClone(next);
  }
  plan = next;
  show();
  if (settled && own && !plan.ahead) {
    const lost = plan.loss === null ? "" : `, predicted loss ${plan.loss.toFixed(3)} nats`;
    $(".np-say").textContent = `${own} changed. ${(100 * plan.reached).toFixed(1)} % of the prunable parameters go${lost}.`;
    own = "";
  }
}

document.addEventListener("np-plan", (event) => {
  $(".np-map").classList.toggle("np-busy", !scores);
  taken(structuredClone(event.detail), true);
});
document.addEventListener("np-preview", (event) => drag && taken(event.detail, false));
document.addEventListener("np-ahead", (event) => taken(event.detail, false));
document.addEventListener("np-working", () => $(".np-map").classList.add("np-busy"));
document.addEventListener("np-activity", (event) => { $(".np-wait").textContent = event.detail; });
addEventListener("resize", () => scores && build());
watch("scores", build);
watch("selected", ring);
build();
document.dispatchEvent(new CustomEvent("np-again"));
// Events: 'pick', 'look', 'table'.
