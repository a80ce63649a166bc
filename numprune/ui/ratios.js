// The table of ratios inside `element`: edits, pasted columns and locks are sent, focus and half-typed text survive
// the redraw that answers them.
let focused = null;
const drafts = new Map();

function nameOf(input) {
  return input.dataset.cell ? `[data-cell="${input.dataset.cell}"]` : `[data-lock="${input.dataset.lock}"]`;
}

function send(cells) {
  if (cells.length) trigger("edit", { cells });
}

element.addEventListener("focusin", (event) => {
  if (event.target.matches("[data-cell], [data-lock]")) focused = nameOf(event.target);
  if (event.target.matches("[data-cell]")) event.target.select();
});
element.addEventListener("focusout", (event) => {
  // A redraw removes the focused input without moving the focus anywhere.
  if (event.relatedTarget || event.target.isConnected) focused = null;
});
element.addEventListener("input", (event) => {
  if (event.target.matches("[data-cell]")) drafts.set(nameOf(event.target), event.target.value);
});
element.addEventListener("change", (event) => {
  const input = event.target;
  if (input.matches("[data-lock]")) trigger("edit", { lock: [input.dataset.lock, input.checked] });
  if (!input.matches("[data-cell]")) return;
  drafts.delete(nameOf(input));
  send([[input.dataset.cell, input.value]]);
  // What is shown is what the plan says; a refused text must not stay.
  input.value = input.defaultValue;
});
element.addEventListener("keydown", (event) => {
  const input = event.target;
  if (!input.matches("[data-cell]")) return;
  if (event.key === "Escape") {
    drafts.delete(nameOf(input));
    input.value = input.defaultValue;
  }
  const step = { Enter: 1, ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const [layer, kind] = input.dataset.cell.split(".");
  const next = element.querySelector(`[data-cell="${Number(layer) + step}.${kind}"]`);
  if (next) next.focus();
  else input.blur();
});
element.addEventListener("paste", (event) => {
  const input = event.target;
  const text = event.clipboardData.getData("text").replace(/\r/g, "").replace(/\n+$/, "");
  if (!input.matches("[data-cell]") || !/[\n\t]/.test(text)) return;
  event.preventDefault();
  const kinds = ["attention", "mlp"], [layer, kind] = input.dataset.cell.split(".");
  const cells = [];
  text.split("\n").forEach((line, down) => line.split("\t").forEach((value, right) => {
    const name = `${Number(layer) + down}.${kinds[kinds.indexOf(kind) + right]}`;
    if (element.querySelector(`[data-cell="${name}"]`)) cells.push([name, value]);
  }));
  send(cells);
});
watch("value", () => {
  for (const [name, text] of drafts) {
    const input = element.querySelector(name);
    if (input) input.value = text;
  }
  const again = focused && element.querySelector(focused);
  if (again && document.activeElement === document.body) again.focus({ preventScroll: true });
});
