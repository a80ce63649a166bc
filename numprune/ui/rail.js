// The frontier and the budget in the rail, drawn from the plan: by "np-plan", and by "np-preview" while something is
// dragged. A measured point can be clicked: its recipe is taken over.
const WIDTH = 268, HEIGHT = 104, LEFT = 30, RIGHT = 8, TOP = 8, BOTTOM = 16, LAST = .9;
let plan = null;
const figure = (number, digits = 3) => number.toFixed(digits);
const count = (number) => number.toLocaleString("en");
const text = (value) => String(value).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
const memory = (size) => (size >= 1e9 ? `${(size / 1e9).toFixed(2)} GB` : `${(size / 1e6).toFixed(2)} MB`);
const change = (after, before) => `${after > before ? "+" : ""}${((after / before - 1) * 100).toFixed(1)} %`;
const big = (number) => (number >= 1e9 ? `${(number / 1e9).toPrecision(3)} B` : number >= 1e6 ? `${(number / 1e6).toPrecision(3)} M` : count(number));

function draw() {
  const area = element.querySelector(".np-frontier"), points = props.points ?? [];
  const curve = plan?.curve, known = [...points.map((point) => point.loss), ...(curve?.loss ?? [])];
  const most = Math.max(.02, ...known);
  const x = (ratio) => LEFT + (Math.min(ratio, LAST) / LAST) * (WIDTH - LEFT - RIGHT);
  const y = (loss) => HEIGHT - BOTTOM - Math.sqrt(Math.max(loss, 0) / most) * (HEIGHT - TOP - BOTTOM);
  let inside = "", above = Infinity;
  for (const tick of [.001, .003, .01, .03, .1, .3, 1, 3, 10].filter((each) => each < most).reverse()) {
    if (y(tick) - above < 13 && above !== Infinity) continue;
    above = y(tick);
    inside += `<line x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${above}" y2="${above}" class="np-rule"/><text x="${LEFT - 4}" y="${above + 3}" text-anchor="end">${tick}</text>`;
  }
  if (curve) {
    const path = curve.reached.map((ratio, index) => `${index ? "L" : "M"}${x(ratio).toFixed(1)} ${y(curve.loss[index]).toFixed(1)}`).join("");
    inside += `<path d="${path}" class="np-curve"/>`;
  }
  if (plan) inside += `<line x1="${x(plan.reached)}" x2="${x(plan.reached)}" y1="${TOP - 4}" y2="${HEIGHT - BOTTOM}" class="np-now"/>`;
  if (plan && plan.loss !== null) inside += `<circle cx="${x(plan.reached)}" cy="${y(plan.loss)}" r="4.5" class="np-plan"/>`;
  points.forEach((point, index) => {
    const says = `${point.name}: measured ${point.loss >= 0 ? "+" : ""}${figure(point.loss)} nats a token${point.recipe ? ", click to take its recipe over" : ""}`;
    const button = point.recipe ? `tabindex="0" role="button"` : `role="img"`;
    inside += `<circle cx="${x(point.reached)}" cy="${y(point.loss)}" r="4" class="np-point" data-point="${index}" ${button} aria-label="${text(says)}"><title>${text(says)}</title></circle>`;
  });
  inside += `<text x="${LEFT}" y="${HEIGHT - 3}">0 %</text><text x="${WIDTH - RIGHT}" y="${HEIGHT - 3}" text-anchor="end">90 % removed</text>`;
  const note = plan && !curve ? "<p>Scores of this method are no prices, so no loss is predicted; measured ones are drawn.</p>" : "";
  area.innerHTML = `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="group" aria-label="Loss in nats a token against the share removed: the line is predicted, circles are measured">${inside}</svg>${note}`;
}

function budget() {
  const { before, after } = plan;
  const rows = [
    ["of prunable", `${(100 * plan.reached).toFixed(1)} %`, `${(100 * plan.ratio).toFixed(0)} % asked`],
    ["parameters", count(after.parameters), change(after.parameters, before.parameters)],
    ["weights", memory(after.bytes), `of ${memory(before.bytes)}`],
    ["KV, 1,000 tokens", memory(after.kv), `of ${memory(before.kv)}`],
    ["FLOP a token", big(after.flops), change(after.flops, before.flops)],
  ];
  if (plan.loss !== null) rows.unshift(["predicted loss", `+${figure(plan.loss)} nats`, `PPL × ${plan.loss < 7 ? figure(Math.exp(plan.loss), 2) : Math.exp(plan.loss).toExponential(0)}`]);
  element.querySelector(".np-budget").innerHTML =
    `<table><tbody>${rows.map(([name, value, note]) => `<tr><th scope="row">${name}</th><td>${value}</td><td>${note}</td></tr>`).join("")}</tbody></table>` +
    plan.notes.map((note) => `<p>${text(note)}</p>`).join("");
}

function take(event) {
  const point = props.points?.[event.target.closest("[data-point]")?.dataset.point];
  if (point?.recipe) document.dispatchEvent(new CustomEvent("np-edit", { detail: { kind: "recipe", recipe: point.recipe } }));
}

function show(next) {
  plan = next;
  draw();
  budget();
}

element.addEventListener("click", take);
element.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") take(event); });
document.addEventListener("np-plan", (event) => show(event.detail));
document.addEventListener("np-preview", (event) => show(event.detail));
watch("points", draw);
draw();
document.dispatchEvent(new CustomEvent("np-again"));
