// The models of the tab as chips: one click takes a model in or out of the comparison, the cross removes it for good.
const escape = (value) => String(value).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
function show() {
  const { models = [], chosen = [] } = props;
  element.querySelector(".np-chips").innerHTML = `<span class="np-model-chip np-fixed">Dense</span>` + models.map((name) =>
    `<span class="np-model-chip${chosen.includes(name) ? " np-chosen" : ""}"><button type="button" data-choose="${escape(name)}" aria-pressed="${chosen.includes(name)}">${escape(name)}</button>` +
    `<button type="button" data-remove="${escape(name)}" aria-label="Remove ${escape(name)}" title="Remove and free its memory">×</button></span>`).join("");
}
element.addEventListener("click", (event) => {
  const { choose, remove } = event.target.dataset ?? {};
  if (choose) {
    const chosen = props.chosen.includes(choose) ? props.chosen.filter((name) => name !== choose) : [...props.chosen, choose];
    props.value = JSON.stringify(chosen);
    trigger("choose");
  }
  if (remove) {
    props.value = JSON.stringify(remove);
    trigger("remove");
  }
});
watch(["models", "chosen"], show);
show();
