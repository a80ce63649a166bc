// The replay of a speed measurement. Whatever it shows is read from the page at every frame: new results are patched
// into the same nodes.
const PLAYING = "Stop";
let playing = 0;

const lanes = (race) => [...race.querySelectorAll(".np-lane")];
const rate = (count, times, now) => {
  const spent = Math.min(now, times[times.length - 1]) - times[0];
  return count > 1 && spent > 0 ? ((count - 1) / spent).toFixed(1) : "0.0";
};

function paint(lane, runner, now) {
  const { seconds, pieces } = runner;
  let count = 0;
  while (count < seconds.length && seconds[count] <= now) count += 1;
  const shown = Math.max(0, Math.min(now, seconds[seconds.length - 1]));
  lane.querySelector(".np-count").textContent =
    `${rate(count, seconds, now)} tokens/s · ${count} of ${seconds.length} · ${shown.toFixed(2)} s`;
  const track = lane.querySelector("[role=progressbar]");
  track.setAttribute("aria-valuenow", count);
  track.firstElementChild.style.width = `${(100 * count) / seconds.length}%`;
  const [written, rest] = lane.querySelectorAll("[data-written], [data-rest]");
  if (written) {
    written.textContent = pieces.slice(0, count).join("");
    rest.textContent = pieces.slice(count).join("");
  }
  return count === seconds.length;
}

function settle(race) {
  const { runners } = JSON.parse(race.dataset.race);
  lanes(race).forEach((lane, index) => runners[index] && paint(lane, runners[index], Infinity));
  for (const button of race.querySelectorAll("[data-play]")) {
    button.textContent = button.dataset.label;
    button.setAttribute("aria-pressed", "false");
  }
  race.querySelector("[role=status]").textContent = race.dataset.verdict;
}

function play(race, button) {
  const own = (playing += 1);
  settle(race);
  const told = race.dataset.race;
  const { runners } = JSON.parse(told);
  let before = 0;
  const starts = runners.map(({ seconds }) => {
    const start = before;
    if (button.dataset.play === "turn") before += seconds[seconds.length - 1];
    return start;
  });
  button.textContent = PLAYING;
  button.setAttribute("aria-pressed", "true");
  race.querySelector("[role=status]").textContent = "";
  let elapsed = 0;
  let last = performance.now();
  const frame = (now) => {
    if (own !== playing || !race.isConnected) return;
    if (race.dataset.race !== told) return settle(race);
    elapsed += ((now - last) / 1000) * Number(race.querySelector("select").value);
    last = now;
    const done = lanes(race).map((lane, index) => paint(lane, runners[index], elapsed - starts[index]));
    if (done.every(Boolean)) settle(race);
    else requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-play]");
  const race = button?.closest(".np-race");
  if (!race) return;
  if (button.getAttribute("aria-pressed") === "true") {
    playing += 1;
    settle(race);
  } else {
    play(race, button);
  }
});
