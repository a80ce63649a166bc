// Layers and modules that go as a whole, on the numbers of the map's rows. Stands before the map's own script.
// What of a layer goes as a whole: a click, or D, on its number goes from all of it to one module to nothing.
const WHOLE = ["none", "layer", "attention", "mlp"];
const isDropped = (kind, row) => plan.dropped.includes(`${row}.${kind}`);

function wholeOf(row) {
  const [attention, mlp] = KINDS.map((kind) => isDropped(kind, row));
  const present = KINDS.filter((kind) => units(kind, row));
  if (present.length && present.every((kind) => isDropped(kind, row))) return "layer";
  return attention ? "attention" : mlp ? "mlp" : "none";
}

function nextWhole(row) {
  const able = WHOLE.filter((what) => what === "none" || what === "layer" || (units(what, row) && KINDS.every((kind) => units(kind, row))));
  return able[(able.indexOf(wholeOf(row)) + 1) % able.length];
}

function labels() {
  const says = { none: "stays", layer: "is dropped", attention: "loses its attention", mlp: "loses its MLP" };
  all(".np-lab button").forEach((label) => {
    const row = Number(label.dataset.row), what = wholeOf(row);
    label.dataset.whole = what;
    const told = `Layer ${row} ${says[what]}`, turn = scores.influence[row];
    const influence = turn === undefined ? "" : `, block influence ${turn.toPrecision(2)}`;
    label.setAttribute("aria-label", told + influence);
    label.title = `${told}${influence} · click or D: layer, attention, MLP, nothing`;
    label.style.setProperty("--i", turn === undefined ? 0 : Math.sqrt(Math.max(0, turn) / Math.max(...scores.influence)));
  });
  for (const kind of KINDS) {
    const wide = kind === "mlp" ? 1000 : scores.grids.attention.bins, high = kind === "mlp" ? rowHeight : 1;
    let areas = "", lines = "";
    for (let row = 0; row < scores.layers; row += 1) {
      if (!units(kind, row) || !isDropped(kind, row)) continue;
      areas += `M0 ${row * high}h${wide}v${high}h-${wide}z`;
      lines += `M0 ${(row + .5) * high}h${wide}`;
    }
    box(kind).querySelector(".np-gone").setAttribute("d", areas);
    box(kind).querySelector(".np-gone-line").setAttribute("d", lines);
  }
}

function dropNext(row) {
  if (!plan || !scores) return;
  own = `Layer ${row}`;
  edit({ kind: "drop", layer: row, what: nextWhole(row) });
}

function wireLabels() {
  for (const lab of all(".np-lab")) {
    lab.addEventListener("click", (event) => {
      const label = event.target.closest("button");
      if (label) dropNext(Number(label.dataset.row));
    });
    lab.addEventListener("keydown", (event) => {
      const label = event.target.closest("button");
      if (!label) return;
      if (event.key === "d" || event.key === "D") dropNext(Number(label.dataset.row));
      else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        const next = event.key === "ArrowDown" ? label.nextElementSibling : label.previousElementSibling;
        if (next) {
          label.tabIndex = -1;
          next.tabIndex = 0;
          next.focus();
        }
      } else return;
      event.preventDefault();
    });
  }
}

