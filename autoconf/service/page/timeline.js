// The timeline of a replay: asks /replay, and draws allocated and reserved memory over the steps of a job.

import { ask, element } from "./common.js";

const WIDTH = 720, HEIGHT = 300, LEFT = 44, RIGHT = 8, TOP = 30, BOTTOM = 24;
const SVG = new DOMParser().parseFromString("<svg></svg>", "text/html").querySelector("svg").namespaceURI;

function drawn(name, attributes = {}, ...content) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...content);
  return made;
}

const gib = (value) => `${value.toFixed(1)} GiB`;

// The section below an answer: a number of GPUs, a button that replays the job there, and the result.
export function replaySection(job, gpus, signal) {
  const count = element("input", { id: "replay-gpus", inputmode: "numeric", autocomplete: "off", value: String(gpus) });
  const button = element("button", { type: "button", id: "replay" }, "Replay the memory over time");
  const result = element("div", { id: "timeline", role: "status" });
  button.addEventListener("click", () => replay({ ...job, number_gpus: count.value.trim() }, { button, result, signal }));
  return element("div", {}, element("h2", {}, "Memory over time"),
    element("p", { class: "help" }, "Replays PyTorch's allocator from the model as loaded through three steps. It takes up to some minutes."),
    element("div", { class: "actions" }, element("label", { for: "replay-gpus" }, "GPUs"), count, button), result);
}

async function replay(job, { button, result, signal }) {
  const begun = Date.now();
  const seconds = element("span", { "aria-hidden": "true" });
  result.replaceChildren(element("p", {}, "Replaying the job … ", seconds));
  const clock = setInterval(() => { seconds.textContent = `${Math.round((Date.now() - begun) / 1000)} s`; }, 1000);
  button.disabled = true;
  try {
    result.replaceChildren(...shown(await ask("replay", job, signal)));
  } catch (error) {
    result.replaceChildren(element("p", { class: "error" }, error.message));
  } finally {
    clearInterval(clock);
    button.disabled = false;
  }
}

function shown(found) {
  if (found.fits === null) return [element("p", {}, `Not replayed: ${found.reason}`)];
  const on = found.number_gpus === 1 ? "On 1 GPU" : `On each of ${found.number_gpus} GPUs`;
  const needs = `needs ${gib(found.needed_memory_gib)} of ${gib(found.usable_memory_gib)}`;
  const parts = `${gib(found.peak_memory_gib)} are allocated at most, ${gib(found.fragmentation_gib)} are lost to fragmentation, and ` +
    `${gib(found.overhead_gib)} are not PyTorch's.`;
  return [
    element("p", {}, element("strong", {}, `${on}: ${found.fits ? "runs" : "does not run"}, ${needs}.`)),
    ...(found.failure ? [element("p", { class: "error", id: "failure" }, `It ${found.failure}.`)] : []),
    element("p", {}, parts), ...picture(found), table(found),
    element("ul", {}, ...found.notes.map((note) => element("li", {}, note))),
  ];
}

// --- the picture ---

function picture(found) {
  const { events, events_per_point: stretch, allocated_gib: allocated, reserved_gib: reserved, steps } = found.timeline;
  const most = 1.06 * Math.max(found.usable_memory_gib, ...allocated, ...reserved);
  const x = (event) => LEFT + (event / events) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - (value / most) * (HEIGHT - TOP - BOTTOM);
  const line = (values) => values.map((value, point) => `${x(point * stretch).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const share = found.usable_memory_gib - found.overhead_gib;
  const level = (value, kind) => drawn("line", { class: kind, x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) });
  const marker = drawn("line", { class: "moment", y1: TOP, y2: HEIGHT - BOTTOM, x1: LEFT, x2: LEFT });
  const said = `Memory over ${steps.length} parts of a job: allocated up to ${gib(Math.max(...allocated))}, reserved up to ` +
    `${gib(Math.max(...reserved))}, of ${gib(share)} that PyTorch has on the GPU. ${found.failure ? `It ${found.failure}.` : "It runs."}`;
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "timeline", role: "img", "aria-label": said },
    ...ticks(most, y), ...stepLines(steps, events, x),
    drawn("polygon", { class: "area", points: `${x(0)},${y(0)} ${line(allocated)} ${x((allocated.length - 1) * stretch)},${y(0)}` }),
    drawn("polyline", { class: "allocated", points: line(allocated) }),
    drawn("polyline", { class: "reserved", points: line(reserved) }),
    level(found.usable_memory_gib, "usable"), level(share, "share"), marker, ...legend(),
    ...(found.timeline.failed_at_event === null ? [] : failure(x(found.timeline.failed_at_event), y(reserved.at(-1)))));
  return [svg, moment(found, (event) => { marker.setAttribute("x1", x(event)); marker.setAttribute("x2", x(event)); })];
}

function ticks(most, y) {
  const step = [1, 2, 5, 10, 20, 50].find((size) => most / size <= 6) ?? 100;
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, index) =>
    drawn("text", { x: LEFT - 6, y: y(index * step) + 4, "text-anchor": "end" }, String(index * step)));
}

function stepLines(steps, events, x) {
  return steps.flatMap(({ name, event }, index) => {
    const end = steps[index + 1]?.event ?? events;
    const line = drawn("line", { class: "step", x1: x(event), x2: x(event), y1: TOP, y2: HEIGHT - BOTTOM });
    return x(end) - x(event) < 48 ? [line] : [line, drawn("text", { x: x(event) + 3, y: HEIGHT - 8 }, name)];
  });
}

function legend() {
  const names = { allocated: "allocated", reserved: "reserved", share: "PyTorch's share", usable: "the GPU, GiB" };
  return Object.entries(names).flatMap(([kind, name], index) => {
    const at = LEFT + index * 150;
    return [drawn("line", { class: kind, x1: at, x2: at + 22, y1: 12, y2: 12 }), drawn("text", { x: at + 28, y: 16 }, name)];
  });
}

function failure(x, y) {
  const [at, anchor] = x > WIDTH / 2 ? [x - 10, "end"] : [x + 10, "start"];
  return [drawn("path", { class: "failure", d: `M${x - 6},${y - 6}l12,12m0,-12l-12,12` }),
    drawn("text", { x: at, y: y + 18, "text-anchor": anchor }, "runs out of memory")];
}

// --- in words ---

// A slider over the events, which says what is held at the moment that it names.
function moment(found, mark) {
  const { events_per_point: stretch, allocated_gib: allocated, reserved_gib: reserved, steps } = found.timeline;
  const slider = element("input", { type: "range", id: "moment", min: "0", max: String(allocated.length - 1), value: "0" });
  const words = element("output", { for: "moment" });
  const say = () => {
    const point = Number(slider.value);
    const name = steps.findLast(({ event }) => event < (point + 1) * stretch)?.name ?? "start";
    const kept = point < reserved.length ? `${gib(reserved[point])} reserved` : "after the failure";
    words.textContent = `${name}: ${gib(allocated[point])} allocated, ${kept}`;
    slider.setAttribute("aria-valuetext", words.textContent);
    mark(point * stretch);
  };
  slider.addEventListener("input", say);
  say();
  return element("div", { class: "moment-box" }, element("label", { for: "moment" }, "Moment"), slider, words);
}

function table(found) {
  const { events, events_per_point: stretch, allocated_gib: allocated, reserved_gib: reserved, steps, failed_at_event: failed } = found.timeline;
  const rows = steps.map(({ name, event }, index) => {
    const end = steps[index + 1]?.event ?? events;
    const within = (values) => values.slice(Math.floor(event / stretch), Math.ceil(end / stretch));
    const most = (values) => (within(values).length ? Math.max(...within(values)).toFixed(1) : "–");
    const fails = failed !== null && event <= failed && failed < end;
    const cells = [most(allocated), most(reserved), fails ? "runs out of memory" : failed !== null && failed < event ? "not reached" : "runs"];
    return element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((cell) => element("td", {}, cell)));
  });
  const head = ["Part", "Allocated, GiB", "Reserved, GiB", "Result"].map((name) => element("th", { scope: "col" }, name));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Memory of each part" },
    element("table", { class: "plan", id: "parts" },
      element("caption", {}, "The most memory of each part; allocated as if the GPU had no limit"),
      element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)));
}
