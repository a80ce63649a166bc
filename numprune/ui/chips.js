// The models of the tab as chips: one click takes a model in or out of the comparison, the cross removes it for good.
const escape = (value) => String(value).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
const state = () => JSON.parse(props.value || '{"models": [], "chosen": []}');
function show() {
  const { models, chosen } = state();
  element.querySelector(".np-chips").innerHTML = `<span class="np-model-chip np-fixed">Dense</span>` + models.map((name) =>
    `<span class="np-model-chip${chosen.includes(name) ? " np-chosen" : ""}"><button type="button" data-choose="${escape(name)}" aria-pressed="${chosen.includes(name)}">${escape(name)}</button>` +
    `<button type="button" data-remove="${escape(name)}" aria-label="Remove ${escape(name)}" title="Remove and free its memory">×</button></span>`).join("");
}
element.addEventListener("click", (event) => {
  const { choose, remove } = event.target.dataset ?? {};
  const { chosen } = state();
  if (choose) trigger("choose", chosen.includes(choose) ? chosen.filter((name) => name !== choose) : [...chosen, choose]);
  if (remove) trigger("remove", remove);
});
watch("value", show);
show();
