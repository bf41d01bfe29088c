// What the other parts share: the page's buttons, its data, words, signs and colours.
const root = document.documentElement;
const $ = (id) => document.getElementById(id);

// Light and dark: the system's choice until the button says otherwise.
const theme = (dark) => {
  root.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", String(dark));
};
const system = matchMedia("(prefers-color-scheme: dark)");
theme(system.matches);
system.addEventListener("change", () => theme(system.matches));
$("theme").addEventListener("click", () => theme(root.dataset.theme !== "dark"));

// Copy: the clipboard where it may be used, a selection where not.
const copied = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
};
for (const button of document.querySelectorAll(".copy button")) {
  button.addEventListener("click", async () => {
    await copied(button.previousElementSibling.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

const data = JSON.parse($("data").textContent);
if (!data.rows.length) return;
const KEY = 0, STATUS = 1, BYTES = 2, FIRST = 3;
const { statuses, columns, texts, rows } = data;

// Words and numbers
const size = (bytes) => {
  let value = bytes, unit = 0;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  while (value >= 1024 && unit < 4) { value /= 1024; unit += 1; }
  return `${unit ? value.toFixed(1) : value} ${units[unit]}`;
};
const count = (number) => number.toLocaleString("en");
const short = (value) => {
  if (value === null) return "";
  if (typeof value === "string") return value;
  return value === 0 ? "0" : Math.abs(value) >= 0.001 && Math.abs(value) < 1e5
    ? String(Number(value.toPrecision(5))) : value.toExponential(2);
};
const percent = (value) => {
  if (value === null) return "";
  if (value > 0 && value < 0.0001) return "<0.01 %";
  if (value < 1 && value > 0.9999) return ">99.99 %";
  return `${(100 * value).toFixed(2)} %`;
};
const number = (value) => (value === null ? NaN : value === "inf" ? Infinity : value === "-inf" ? -Infinity : Number(value));

// SVG, and the signs that tell a status without its colour
const svg = (name, attributes = {}, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const element = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const patterns = {
  missing: () => [svg("path", { class: "mark", d: "M-2 10 L10 -2 M6 10 L10 6 M-2 2 L2 -2" })],
  unexpected: () => [svg("circle", { class: "mark dot", cx: 4, cy: 4, r: 1.4 })],
  shape: () => [svg("path", { class: "mark", d: "M0 0 L8 8 M8 0 L0 8" })],
  dtype: () => [svg("path", { class: "mark", d: "M0 4 H8" })],
  edited: () => [svg("path", { class: "mark", d: "M4 0 V8" })],
};
const definitions = svg("svg", { width: 0, height: 0, "aria-hidden": "true", style: "position:absolute" });
for (const [name, draw] of Object.entries(patterns)) {
  definitions.append(svg("pattern", { id: `pattern-${name}`, width: 8, height: 8, patternUnits: "userSpaceOnUse" }, ...draw()));
}
document.body.append(definitions);
const box = (style, x, y, width, height) => {
  const place = { x, y, width: Math.max(width, 0), height };
  const parts = [svg("rect", { ...place, class: `fill-${style}` })];
  if (patterns[style]) parts.push(svg("rect", { ...place, fill: `url(#pattern-${style})`, opacity: 0.45 }));
  return parts;
};
const swatch = (style) => svg("svg", { width: 16, height: 16, "aria-hidden": "true" }, ...box(style, 0, 0, 16, 16));
// A key may be broken where a reader would, and nowhere else if that is enough.
const breakable = (key) => key.split(/(?<=[._])/).flatMap((part, at) => (at ? [element("wbr"), part] : [part]));
const labelled = (status) => [statuses[status][1], statuses[status][2]].filter(Boolean).join(" ");

const tally = new Array(statuses.length).fill(0);
for (const row of rows) tally[row[STATUS]] += 1;
statuses.forEach((status, index) => {
  if (tally[index]) $("legend").append(element("li", {}, swatch(status[0]), `${labelled(index)}: ${count(tally[index])}`));
});
