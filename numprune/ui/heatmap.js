// Behaviour of the heatmaps inside `element`: tooltip, selection by click and by arrow keys, pictures to keep.
// A redraw replaces the figure or changes its attributes in place, so every handler sits on `element`, reads the figure
// anew, and parses its data again when they are others.
const parsed = new WeakMap();

function bytes(text) {
  const raw = atob(text);
  return Uint8Array.from(raw, (character) => character.charCodeAt(0));
}

function heatOf(figure) {
  if (parsed.get(figure)?.text !== figure.dataset.heat) {
    const heat = JSON.parse(figure.dataset.heat);
    heat.share = bytes(heat.share);
    for (const grid of Object.values(heat.values)) grid.steps = new Uint16Array(bytes(grid.data).buffer);
    parsed.set(figure, { text: figure.dataset.heat, heat });
  }
  return parsed.get(figure).heat;
}

function describe(heat, row, column) {
  const cell = row * heat.columns + column;
  if (heat.share[cell] === 255) return `${heat.row} ${row}: nothing here`;
  const first = Math.floor(column * heat.perCell);
  const last = Math.max(first, Math.ceil((column + 1) * heat.perCell) - 1);
  const where = heat.sorted
    ? `${heat.column}s at ${((column / heat.columns) * 100).toFixed(1)} % from the lowest`
    : `${heat.column} ${first}${last > first ? " to " + last : ""}`;
  const lines = [`${heat.row} ${row}, ${where}`];
  for (const [name, grid] of Object.entries(heat.values)) {
    const step = grid.steps[cell];
    if (step !== 65535) lines.push(`${name} ${(grid.low + (step / 65534) * grid.span).toPrecision(4)}`);
  }
  const share = heat.share[cell] / 254;
  const [all, none] = heat.words;
  lines.push(share === 1 ? all : share === 0 ? none : `${Math.round(share * 100)} % ${all}`);
  return lines.join("\n");
}

function drawRing(figure) {
  const { ring } = heatOf(figure);
  const path = ring ? `M${ring[1]} ${ring[0]}h1v1h-1z` : "";
  figure.querySelector(".np-ring").setAttribute("d", path);
  figure.querySelector(".np-ring-under").setAttribute("d", path);
}

function showTip(figure, row, column) {
  const heat = heatOf(figure), tip = figure.querySelector(".np-heat-tip"), plot = tip.parentElement;
  tip.textContent = describe(heat, row, column);
  tip.style.display = "block";
  const x = ((column + 0.5) / heat.columns) * plot.clientWidth, y = ((row + 1) / heat.rows) * plot.clientHeight;
  tip.style.left = `${Math.max(0, Math.min(x + 12, plot.clientWidth - tip.offsetWidth))}px`;
  tip.style.top = `${y + tip.offsetHeight + 8 > plot.clientHeight ? Math.max(0, y - tip.offsetHeight - 30) : y + 8}px`;
}

function hideTip(figure) {
  figure.querySelector(".np-heat-tip").style.display = "none";
}

function cellAt(event) {
  const plot = event.target.closest(".np-heat-plot");
  if (!plot) return null;
  const figure = plot.closest(".np-heat"), heat = heatOf(figure), box = plot.getBoundingClientRect();
  const inside = (share, count) => Math.max(0, Math.min(count - 1, Math.floor(share * count)));
  return {
    figure,
    row: inside((event.clientY - box.top) / box.height, heat.rows),
    column: inside((event.clientX - box.left) / box.width, heat.columns),
  };
}

let pending = 0;
function select(figure, row, column, wait) {
  heatOf(figure).ring = [row, column];
  drawRing(figure);
  showTip(figure, row, column);
  clearTimeout(pending);
  pending = setTimeout(() => trigger("select", { row, column }), wait);
}

element.addEventListener("pointermove", (event) => {
  const cell = cellAt(event);
  if (cell) showTip(cell.figure, cell.row, cell.column);
});
element.addEventListener("pointerout", (event) => {
  const figure = event.target.closest(".np-heat");
  if (figure && !figure.contains(event.relatedTarget)) hideTip(figure);
});
element.addEventListener("focusout", (event) => {
  const figure = event.target.closest(".np-heat");
  if (figure) hideTip(figure);
});
element.addEventListener("click", (event) => {
  const save = event.target.closest("[data-save]");
  if (save) return keepPicture(save.closest(".np-heat"), save.dataset.save);
  const cell = cellAt(event);
  if (cell) select(cell.figure, cell.row, cell.column, 0);
});
element.addEventListener("keydown", (event) => {
  const figure = event.target.closest(".np-heat");
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (!figure || event.target !== figure || !(event.key in moves)) return;
  event.preventDefault();
  const heat = heatOf(figure), [down, right] = moves[event.key], stride = event.shiftKey ? 10 : 1;
  const [row, column] = heat.ring ?? [0, 0];
  const moved = heat.ring ? [row + down * stride, column + right * stride] : [0, 0];
  // A held key walks on; the server hears of the place where it stops.
  select(figure, Math.max(0, Math.min(heat.rows - 1, moved[0])), Math.max(0, Math.min(heat.columns - 1, moved[1])), 150);
});

function asSvg(figure) {
  const box = figure.getBoundingClientRect(), plot = figure.querySelector(".np-heat-plot");
  const style = getComputedStyle(figure), escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
  const parts = [];
  for (const image of figure.querySelectorAll("img")) {
    const at = image.getBoundingClientRect();
    parts.push(`<image href="${image.src}" x="${at.left - box.left}" y="${at.top - box.top}" width="${at.width}" ` +
      `height="${at.height}" preserveAspectRatio="none" style="image-rendering:pixelated"/>`);
  }
  const at = plot.getBoundingClientRect(), heat = heatOf(figure);
  for (const path of plot.querySelectorAll("path")) {
    const look = getComputedStyle(path);
    parts.push(`<path d="${path.getAttribute("d")}" fill="none" vector-effect="non-scaling-stroke" ` +
      `stroke="${look.stroke}" stroke-width="${look.strokeWidth}" stroke-opacity="${look.strokeOpacity}" transform="` +
      `translate(${at.left - box.left} ${at.top - box.top}) scale(${at.width / heat.columns} ${at.height / heat.rows})"/>`);
  }
  for (const text of figure.querySelectorAll("figcaption b, span")) {
    if (text.closest(".np-heat-save") || !text.textContent) continue;
    const place = text.getBoundingClientRect(), look = getComputedStyle(text);
    parts.push(`<text x="${place.left - box.left}" y="${place.bottom - box.top - place.height * 0.25}" ` +
      `font-family="sans-serif" font-size="${look.fontSize}" fill="${look.color}">${escape(text.textContent)}</text>`);
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${box.width}" height="${box.height}">` +
    `<rect width="100%" height="100%" fill="${style.backgroundColor}"/>${parts.join("")}</svg>`;
}

function keepPicture(figure, kind) {
  hideTip(figure);
  const name = figure.querySelector("figcaption b").textContent.replace(/[^a-z0-9]+/gi, "-").toLowerCase();
  return savePicture(asSvg(figure), name, kind);
}

function rings() {
  element.querySelectorAll(".np-heat").forEach(drawRing);
}
watch("value", rings);
rings();
