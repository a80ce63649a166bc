// The map's twin: a table of all layers' ratios and locks, built from the plan by this script alone, so that nothing of
// an older plan stays in it. Edits leave by "np-edit"; a half-typed text survives the plans that arrive meanwhile.
const KINDS = ["attention", "mlp"], NAMES = { attention: "Attention", mlp: "MLP" };
const escape = (value) => String(value).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
const edit = (detail) => document.dispatchEvent(new CustomEvent("np-edit", { detail }));
let plan = null, built = "";

function build() {
  const heading = KINDS.map((kind) => `<th scope="col">${NAMES[kind]} ratio</th><th scope="col">Lock</th>` +
    `<th scope="col">${kind === "mlp" ? "Channels" : `${plan.unit[0].toUpperCase()}${plan.unit.slice(1)}s`} kept</th>`).join("");
  const rows = plan.units.attention.map((_, layer) => `<tr><th scope="row">${layer}</th>${KINDS.map((kind) => {
    const key = `${layer}.${kind}`, name = `${NAMES[kind]} ratio of layer ${layer}`;
    if (!plan.units[kind][layer]) return '<td class="np-none" colspan="3">none</td>';
    return `<td class="np-ratio"><input type="text" inputmode="decimal" autocomplete="off" data-cell="${key}" aria-label="${name}"></td>` +
      `<td><input type="checkbox" data-lock="${key}" aria-label="Lock the ${escape(name)}"></td><td data-kept="${key}"></td>`;
  }).join("")}</tr>`).join("");
  element.querySelector(".np-ratios").innerHTML =
    `<table><thead><tr><th scope="col">Layer</th>${heading}</tr></thead><tbody>${rows}</tbody></table>`;
}

function show(next) {
  plan = next;
  const shape = JSON.stringify([plan.unit, plan.units]);
  if (shape !== built) build();
  built = shape;
  for (const input of element.querySelectorAll("[data-cell]")) {
    const [layer, kind] = input.dataset.cell.split("."), count = plan.units[kind][layer];
    const share = plan.gone[kind][layer] / count, cell = input.parentElement;
    input.dataset.shown = share.toFixed(3);
    if (!input.dataset.draft) input.value = input.dataset.shown;
    cell.style.setProperty("--ratio", share.toFixed(4));
    cell.classList.toggle("np-locked", plan.locks.includes(input.dataset.cell));
    element.querySelector(`[data-kept="${input.dataset.cell}"]`).textContent = `${count - plan.gone[kind][layer]} of ${count}`;
  }
  for (const box of element.querySelectorAll("[data-lock]")) box.checked = plan.locks.includes(box.dataset.lock);
}

function forget(input) {
  delete input.dataset.draft;
  input.value = input.dataset.shown;
}

element.addEventListener("focusin", (event) => event.target.matches("[data-cell]") && event.target.select());
element.addEventListener("input", (event) => { if (event.target.matches("[data-cell]")) event.target.dataset.draft = "yes"; });
element.addEventListener("change", (event) => {
  const input = event.target;
  if (input.matches("[data-lock]")) edit({ kind: "lock", key: input.dataset.lock, on: input.checked });
  if (!input.matches("[data-cell]")) return;
  edit({ kind: "cells", cells: [[input.dataset.cell, input.value]] });
  // What is shown is what the plan says; a refused text must not stay.
  forget(input);
});
element.addEventListener("keydown", (event) => {
  const input = event.target;
  if (!input.matches("[data-cell]")) return;
  if (event.key === "Escape") forget(input);
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
  const [layer, kind] = input.dataset.cell.split("."), cells = [];
  text.split("\n").forEach((line, down) => line.split("\t").forEach((value, right) => {
    const name = `${Number(layer) + down}.${KINDS[KINDS.indexOf(kind) + right]}`;
    if (element.querySelector(`[data-cell="${name}"]`)) cells.push([name, value]);
  }));
  if (cells.length) edit({ kind: "cells", cells });
});
for (const name of ["np-plan", "np-ahead", "np-preview"]) document.addEventListener(name, (event) => show(event.detail));
document.dispatchEvent(new CustomEvent("np-again"));
