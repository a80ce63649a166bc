// What runs in this tab, how far it is, and the button that ends it. It asks while something runs or waits: from the
// moment a part of the page says "np-started" until one says "np-finished" and the server that nothing is left.
const EVERY = 400, PATIENCE = 6;
const says = element.querySelector(".np-running"), stop = element.querySelector("#np-stop");
let idle = PATIENCE, timer = 0;
// Asked for and not finished. Behind the work of other tabs it waits where the server has not begun it, for minutes.
let asked = false, unanswered = 0;

function left(seconds) {
  if (seconds === null) return "";
  return seconds < 90 ? ` · ${Math.max(1, seconds)} s left` : ` · ${Math.round(seconds / 60)} min left`;
}

function show(state) {
  const text = state ? `${state.what[0].toUpperCase()}${state.what.slice(1)}${state.total > 1 ? ` ${state.done}/${state.total}` : ""}${left(state.left)}` : "";
  says.textContent = text;
  stop.disabled = !state;
  document.dispatchEvent(new CustomEvent("np-activity", { detail: text }));
}

async function ask() {
  clearTimeout(timer);
  let state = null;
  if (props.token) {
    try { state = await server.running(props.token); unanswered = 0; } catch { unanswered += 1; }
  }
  if (unanswered > PATIENCE) asked = false;
  idle = state || asked ? 0 : idle + 1;
  show(state ?? (idle < PATIENCE ? { what: "waiting", done: 0, total: 0, left: null } : null));
  if (idle < PATIENCE) timer = setTimeout(ask, EVERY);
}

document.addEventListener("np-started", () => { asked = true; idle = unanswered = 0; show({ what: "starting", done: 0, total: 0, left: null }); clearTimeout(timer); timer = setTimeout(ask, 150); });
document.addEventListener("np-finished", () => { asked = false; idle = PATIENCE; ask(); });
stop.addEventListener("click", () => { if (!stop.disabled) { asked = false; trigger("stop"); } });
watch("token", ask);
idle = 0;
show({ what: "opening the model", done: 0, total: 0, left: null });
ask();
