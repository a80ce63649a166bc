// A click on a cell of the comparison opens its recipe: its edits go the way of all edits, and the plan comes forward.
element.addEventListener("click", (event) => {
  const cell = event.target.closest("[data-edits]");
  if (!cell) return;
  for (const detail of JSON.parse(cell.dataset.edits)) document.dispatchEvent(new CustomEvent("np-edit", { detail }));
  trigger("open");
});
