// The page of the service: a form of the job's fields, the answer of /explain, a matrix of /recommend/table, and job
// files through /jobs. Nothing is computed here.

import { ask, element } from "./common.js";
import { replaySection } from "./timeline.js";

const MAIN = ["model_name", "method", "gpu_model", "tokens_per_sample", "per_device_train_batch_size", "stack", "max_gpus"];
const COMPLETED = ["model_name", "gpu_model"]; // long lists of names, of which other spellings count, too
const WIDE = ["model_name", "gpu_model"];
const RUN = ["dataset_tokens", "epochs", "steps"]; // fields of /throughput and /plan alone
const LIMITS = ["deadline_hours", "budget"]; // fields of /plan alone
const MOST_GPUS = ["max_gpus"]; // a field of questions about the number of GPUs alone
const TOKENS = [512, 1024, 2048, 4096, 8192, 16384, 32768];
const BATCHES = [1, 2, 4, 8, 16, 32];

const byId = (id) => document.getElementById(id);
const form = byId("job");
let latest = 0; // answers of older requests are dropped
let replays = new AbortController(); // ends the replay of an older answer

// --- the form ---

function field(name, schema, choices, required) {
  const id = `field-${name}`;
  const label = name.replaceAll("_", " ") + (required ? " (required)" : "");
  const box = element("div", WIDE.includes(name) ? { class: "wide" } : {}, element("label", { for: id }, label));
  const described = { id, name, title: schema.description, autocomplete: "off" };
  if (required) described["aria-required"] = "true";
  if (choices && !COMPLETED.includes(name)) {
    const select = element("select", described, element("option", { value: "" }, schema.default === undefined ? "" : `default (${schema.default})`));
    for (const choice of choices) select.append(element("option", { value: choice }, choice));
    box.append(select);
  } else if (schema.type === "boolean") {
    const select = element("select", described, element("option", { value: "" }, "default (no)"), element("option", { value: "yes" }, "yes"));
    box.append(select);
  } else {
    const input = element("input", described);
    if (schema.type === "integer") input.inputMode = "numeric";
    if (schema.type === "number") input.inputMode = "decimal";
    if (schema.default !== undefined) input.placeholder = schema.default;
    if (choices) {
      input.setAttribute("list", `${id}-names`);
      box.append(element("datalist", { id: `${id}-names` }, ...choices.map((choice) => element("option", { value: choice }))));
    }
    box.append(input);
  }
  return box;
}

async function build() {
  const [api, names] = await Promise.all([ask("openapi.json"), ask("names")]);
  const schemaOf = (path) => api.paths[path].post.requestBody.content["application/json"].schema;
  const job = schemaOf("/recommend");
  const run = schemaOf("/plan").properties;
  for (const [name, schema] of [...Object.entries(job.properties), ...[...RUN, ...LIMITS].map((name) => [name, run[name]])]) {
    const choices = names[name] ?? schema.enum;
    const required = job.required.includes(name);
    byId(MAIN.includes(name) ? "main-fields" : "more-fields").append(field(name, schema, choices, required));
  }
  fill(fromLink() ?? {});
  if (fromLink()) await answer();
}

function fields() {
  const given = {};
  for (const [name, value] of new FormData(form)) {
    if (typeof value === "string" && value.trim()) given[name] = value.trim();
  }
  return given;
}

function without(names, given) {
  return Object.fromEntries(Object.entries(given).filter(([name]) => !names.includes(name)));
}

function withoutRun(given) {
  return without([...RUN, ...LIMITS], given);
}

function fill(job) {
  for (const input of form.querySelectorAll("[name]")) {
    const value = job[input.name] ?? "";
    input.value = value === true ? "yes" : value === false ? "" : value;
    if (input.value !== "" && MAIN.includes(input.name) === false) form.querySelector("details").open = true;
  }
}

// --- the link ---

function fromLink() {
  const text = new URLSearchParams(location.hash.slice(1)).get("job");
  try {
    const job = JSON.parse(text);
    return job && typeof job === "object" && !Array.isArray(job) ? job : null;
  } catch {
    return null;
  }
}

function link() {
  return `${location.origin}${location.pathname}#${new URLSearchParams({ job: JSON.stringify(fields()) })}`;
}

// --- the answer ---

function show(place, ...content) {
  place.replaceChildren(...content);
  place.hidden = false;
}

function fail(error) {
  for (const input of form.querySelectorAll("[name]")) {
    input.setAttribute("aria-invalid", String(new RegExp(`\\b${input.name}\\b`).test(error.message)));
  }
  show(byId("answer"), element("p", { class: "error", role: "alert" }, error.message));
  byId("matrix").hidden = true;
}

function showAnswer(explained) {
  for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  const box = element("div");
  box.innerHTML = explained.html; // made by the server, which escapes all text of the job
  show(byId("answer"), element("h2", {}, "Answer"), box);
  replays.abort();
  replays = new AbortController();
}

async function answer() {
  const number = ++latest;
  const job = withoutRun(fields());
  history.replaceState(null, "", link());
  byId("answer").setAttribute("aria-busy", "true");
  try {
    const explained = await ask("explain", job);
    if (number !== latest) return;
    showAnswer(explained);
    byId("answer").scrollIntoView({ block: "nearest" });
    await Promise.all([showRun(explained, number), showMatrix(job, number)]);
  } catch (error) {
    if (number === latest) fail(error);
  } finally {
    byId("answer").removeAttribute("aria-busy");
  }
}

async function showRun(explained, number) {
  await showSpeed(explained, number);
  if (number !== latest) return;
  const gpus = explained.can_recommend ? explained.gpus * explained.workers : 1;
  byId("answer").append(replaySection(without([...RUN, ...LIMITS, ...MOST_GPUS], fields()), gpus, replays.signal));
}

async function showSpeed(explained, number) {
  if (!explained.can_recommend) return;
  let text;
  try {
    const found = await ask("throughput", { ...without(LIMITS, fields()), number_gpus: explained.gpus * explained.workers });
    if (found.tokens_per_second === null) throw new Error(found.reason);
    const shown = ["", "_low", "_high"].map((end) => Math.round(found[`tokens_per_second${end}`]).toLocaleString("en"));
    text = `${shown[0]} tokens per second (${shown[1]} to ${shown[2]}), limited by ${found.limit}.`;
    if (found.hours !== null) {
      text += ` The run takes ${found.hours.toFixed(1)} hours`;
      text += found.cost === null ? "." : ` and costs ${found.cost.toFixed(2)}, at list prices.`;
    } else {
      text += " For the hours and the cost of a run, give steps or dataset tokens under More settings.";
    }
  } catch (error) {
    text = `Speed: ${error.message}`;
  }
  const layouts = await plannedTable();
  if (number !== latest) return;
  byId("answer").append(element("h2", {}, "Time and cost"), element("p", { id: "speed" }, text), ...layouts);
}

async function plannedTable() {
  const run = without(["gpu_model"], fields());
  if (!run.dataset_tokens && !run.steps) return [];
  let ranking;
  try {
    ({ ranking } = await ask("plan", run));
  } catch (error) {
    return [element("p", { id: "plan" }, `Plan: ${error.message}`)];
  }
  if (!ranking[0].can_recommend) return [element("p", { id: "plan" }, `Plan: ${ranking[0].reason}`)];
  const cells = ranking.map((one) => [one.gpu_model, String(one.gpus * one.workers), one.hours.toFixed(1), one.cost.toFixed(2)]);
  const head = ["GPU", "GPUs", "Hours", "Cost"].map((name) => element("th", { scope: "col" }, name));
  const rows = cells.map(([gpu, ...numbers]) => element("tr", {}, element("th", { scope: "row" }, gpu),
    ...numbers.map((number) => element("td", {}, number))));
  return [element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Plan" },
    element("table", { class: "plan", id: "plan" },
      element("caption", {}, "Layouts for which no other is both faster and cheaper, at list prices"),
      element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)))];
}

function around(values, chosen) {
  return [...new Set([...values, ...(Number.isInteger(chosen) && chosen > 0 ? [chosen] : [])])].sort((a, b) => a - b);
}

async function showMatrix(job, number) {
  const { batch_size: _, ...each } = job;
  const chosen = { tokens: Number(job.tokens_per_sample), batch: Number(job.per_device_train_batch_size) };
  const tokens = around(TOKENS, chosen.tokens);
  const batches = around(BATCHES, chosen.batch);
  const jobs = batches.flatMap((batch) =>
    tokens.map((length) => ({ ...each, tokens_per_sample: length, per_device_train_batch_size: batch })));
  const { answers } = await ask("recommend/table", { jobs });
  if (number !== latest) return;
  const head = element("tr", {}, element("th", { scope: "col" }, "batch \\ tokens"),
    ...tokens.map((length) => element("th", { scope: "col" }, length.toLocaleString("en"))));
  const rows = batches.map((batch, row) => element("tr", {}, element("th", { scope: "row" }, String(batch)),
    ...tokens.map((length, column) => {
      const found = answers[row * tokens.length + column];
      const total = found.can_recommend ? found.gpus * found.workers : null;
      const label = `${length} tokens, batch ${batch} on each GPU: ${total === null ? "no recommendation" : `${total} GPUs`}`;
      const cell = element("button", { type: "button", "aria-label": label, title: found.reason || label }, total === null ? "–" : String(total));
      if (length === chosen.tokens && batch === chosen.batch) cell.setAttribute("aria-current", "true");
      cell.addEventListener("click", () => {
        fill({ ...fields(), batch_size: "", tokens_per_sample: length, per_device_train_batch_size: batch });
        answer();
      });
      return element("td", {}, cell);
    })));
  byId("matrix").hidden = false;
  byId("matrix").querySelector(".scroll").replaceChildren(
    element("table", { class: "matrix" }, element("thead", {}, head), element("tbody", {}, ...rows)));
}

// --- job files ---

async function readFiles(list) {
  const number = ++latest;
  const files = {};
  for (const file of list) files[file.name] = await file.text();
  if (!Object.keys(files).length) return;
  try {
    const found = await ask("jobs", { files, options: withoutRun(fields()) });
    if (number !== latest) return;
    fill(found.read.job);
    history.replaceState(null, "", link());
    showAnswer(found.answer);
    showRead(found);
    await Promise.all([showRun(found.answer, number), showMatrix(withoutRun(fields()), number)]);
  } catch (error) {
    if (number === latest) fail(error);
  }
}

function showRead({ read, patched, not_patched: notPatched }) {
  const content = [element("h2", {}, "Job file")];
  if (patched) {
    const blob = URL.createObjectURL(new Blob([patched.text], { type: "text/plain" }));
    const name = patched.file.split("/").pop();
    content.push(
      element("p", {}, element("a", { href: blob, download: name, id: "patched" }, `Download ${name} with the new GPU counts`)),
      element("ul", {}, ...patched.notes.map((line) => element("li", {}, line))),
      element("pre", { tabindex: "0", "aria-label": `The new text of ${name}` }, patched.text));
  } else {
    content.push(element("p", {}, `Not changed: ${notPatched}`));
  }
  content.push(element("details", {}, element("summary", {}, "What was read"),
    element("ul", {}, ...read.notes.map((line) => element("li", {}, line)))));
  show(byId("read"), ...content);
}

// --- events ---

form.addEventListener("submit", (event) => {
  event.preventDefault();
  byId("read").hidden = true;
  answer();
});
form.addEventListener("reset", () => {
  history.replaceState(null, "", location.pathname);
  byId("read").hidden = byId("matrix").hidden = true;
  show(byId("answer"), element("p", { class: "help" }, "The answer appears here."));
});
byId("copy").addEventListener("click", async (event) => {
  history.replaceState(null, "", link());
  const done = await navigator.clipboard?.writeText(link()).then(() => true, () => false);
  event.target.textContent = done ? "Copied" : "The address of this page has the job";
});
byId("files").addEventListener("change", (event) => readFiles(event.target.files));
for (const kind of ["dragover", "dragleave", "drop"]) {
  byId("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") readFiles(event.dataTransfer.files);
  });
}
addEventListener("hashchange", () => { fill(fromLink() ?? {}); answer(); });
build().catch(fail);
