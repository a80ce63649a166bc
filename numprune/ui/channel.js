// The one road of edits from the page to the server. Parts of the page dispatch "np-edit"; edits are numbered, kept
// until the server says that it has seen them, and sent again when no answer comes: they arrive in order, each once.
// The plan that follows comes back as the prop `plan` and is handed to all parts by "np-plan"; where the server has not
// seen all edits yet, "np-ahead" follows with what is known of them laid over it, so that the next edit starts from there.
const RETRY = 15000, GESTURE = 700;
const WHOLE = { none: [], layer: ["attention", "mlp"], attention: ["attention"], mlp: ["mlp"] };
let number = 0, pending = [], sent = 0, timer = 0, shown = -1, latest = null;
let previewing = false, waiting = null;
let gesture = 0, moved = 0;

function tell(name, detail) {
  document.dispatchEvent(new CustomEvent(name, { detail }));
}

function send() {
  clearTimeout(timer);
  if (!pending.length) return;
  sent = pending.at(-1).n;
  props.value = JSON.stringify(pending);
  trigger("edit");
  timer = setTimeout(() => { sent = 0; send(); }, RETRY);
}

function add(edit) {
  // Only the newest ratio of one movement of the slider matters; whatever came between stays in its place.
  const last = pending.at(-1);
  if (last && last.n > sent && last.kind === "ratio" && edit.kind === "ratio" && last.gesture === edit.gesture) pending.pop();
  pending.push({ ...edit, n: ++number });
  ahead();
  if (!sent) send();
}

const without = (list, gone) => list.filter((each) => !gone.includes(each));

// A plan with one edit laid over it, as far as the page can know what the server will make of it.
function laid(plan, edit) {
  if (edit.kind === "cells") {
    for (const [key, text] of edit.cells) {
      const [row, kind] = key.split("."), count = plan.units[kind]?.[row], share = Number(text);
      if (!count) continue;
      if (!text.trim()) plan.locks = without(plan.locks, [key]);
      else if (share >= 0 && share < 1) {
        plan.gone[kind][row] = Math.min(Math.round(share * count), count - 1);
        plan.locks = [...without(plan.locks, [key]), key];
        plan.dropped = without(plan.dropped, [key]);
      }
    }
  } else if (edit.kind === "lock") {
    plan.locks = edit.on ? [...without(plan.locks, [edit.key]), edit.key] : without(plan.locks, [edit.key]);
  } else if (edit.kind === "force") {
    plan.forced[`${edit.key}.${edit.unit}`] = edit.how;
    if (edit.how === "auto") delete plan.forced[`${edit.key}.${edit.unit}`];
  } else if (edit.kind === "drop") {
    const [of, gone] = [WHOLE.layer, WHOLE[edit.what]].map((kinds) =>
      kinds.filter((kind) => plan.units[kind][edit.layer]).map((kind) => `${edit.layer}.${kind}`));
    plan.dropped = [...without(plan.dropped, of), ...gone];
  }
  return plan;
}

function ahead() {
  if (latest && pending.length) tell("np-ahead", pending.reduce(laid, structuredClone(latest)));
}

function show() {
  if (!latest) return;
  tell("np-plan", { ...latest, ahead: pending.length });
  ahead();
}

function answered() {
  const plan = props.plan;
  if (!plan) return;
  pending = pending.filter((edit) => edit.n > plan.seen);
  if (plan.seen >= sent) sent = 0;
  if (plan.revision >= shown || plan.tab !== tab) {
    shown = plan.revision;
    tab = plan.tab;
    latest = plan;
    show();
  }
  if (plan.work) {
    props.value = JSON.stringify(plan.work);
    tell("np-started");
    tell("np-working");
    trigger("work");
  }
  if (!sent) send();
}
let tab = null;

// While an edge is dragged: one question at a time, and the newest waits.
async function preview(edit) {
  if (previewing) { waiting = edit; return; }
  previewing = true;
  try {
    const plan = await server.preview({ token: props.plan?.token, edits: [edit] });
    if (plan) tell("np-preview", plan);
  } finally {
    previewing = false;
  }
  if (waiting) {
    const newest = waiting;
    waiting = null;
    preview(newest);
  }
}

document.addEventListener("np-edit", (event) => {
  waiting = null;
  const edit = { ...event.detail };
  if (edit.kind === "ratio" && !edit.gesture) {
    if (performance.now() - moved > GESTURE) gesture += 1;
    moved = performance.now();
    edit.gesture = `ratio ${gesture}`;
  }
  add(edit);
});
document.addEventListener("np-drag", (event) => preview(event.detail));
document.addEventListener("np-again", show);
watch("plan", answered);
answered();
