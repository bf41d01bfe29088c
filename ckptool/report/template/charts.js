// Histograms of magnitudes: both scales are logarithmic
const LOW = -40, HIGH = 24, STEP = 2;
const at = (name) => columns.findIndex(([, kind]) => kind === name);
const shapes = at("magnitudes"), nonFinite = columns.findIndex(([name]) => name === "not finite"), zeros = columns.findIndex(([name]) => name === "zeros");
const bins = (row) => {
  const found = new Array((HIGH - LOW) / STEP).fill(0), octaves = row[FIRST + shapes];
  if (octaves) {
    for (let index = 1; index < octaves.length; index += 1) {
      const octave = Math.min(Math.max(octaves[0] + index - 1, LOW), HIGH - 1);
      found[Math.floor((octave - LOW) / STEP)] += octaves[index];
    }
  }
  return found;
};
const spark = (row) => {
  const found = bins(row), lost = number(row[FIRST + nonFinite]) || 0;
  const most_ = Math.log10(1 + Math.max(...found, lost, 1));
  const tall = (many) => (many ? Math.max(2, (20 * Math.log10(1 + many)) / most_) : 0);
  let path = "";
  found.forEach((many, index) => { if (many) path += `M${4 * index} 22h3v${-tall(many)}h-3z`; });
  const filled = found.map((many, index) => [many, index]).filter(([many]) => many);
  const range = filled.length ? `from 2^${LOW + STEP * filled[0][1]} to 2^${LOW + STEP * (filled.at(-1)[1] + 1)}` : "no finite value but zeros";
  const name = `${range}${lost ? `, ${count(lost)} not finite` : ""}`;
  const picture = svg("svg", { width: 148, height: 24, role: "img", "aria-label": name }, svg("title", {}, name));
  picture.append(svg("path", { d: `M0 22.5H128`, class: "axis", stroke: "var(--line)" }), svg("path", { d: path, class: "shape-bars" }));
  if (lost) picture.append(svg("path", { d: `M134 22h6v${-tall(lost)}h-6z`, class: "lost-bars" }));
  return picture;
};
const histogram = () => {
  const total = new Array((HIGH - LOW) / STEP).fill(0);
  let lost = 0, none = 0;
  for (const index of view) {
    const row = rows[index];
    bins(row).forEach((many, bin) => { total[bin] += many; });
    lost += number(row[FIRST + nonFinite]) || 0;
    if (row[FIRST + zeros] === 1) none += 1;
  }
  const wide = 31, left = 50, height = 150, base = height + 30;
  const high = Math.log10(1 + Math.max(...total, lost, 1));
  const y = (many) => base - (many ? Math.max(2, (height * Math.log10(1 + many)) / high) : 0);
  const right = left + wide * total.length;
  const picture = svg("svg", { viewBox: `0 0 ${right + 110} ${base + 46}`, role: "img", "aria-label": "Histogram of the magnitudes of the values shown in the table" });
  for (let power = 0; power <= high; power += Math.max(1, Math.ceil(high / 5))) {
    const place = y(10 ** power - 1 || 0);
    picture.append(svg("path", { class: "axis", d: `M${left} ${place}H${right}` }), svg("text", { x: left - 6, y: place + 4, "text-anchor": "end" }, power ? `1e${power}` : "0"));
  }
  total.forEach((many, bin) => {
    const x = left + wide * bin;
    if (many) picture.append(svg("rect", { class: "shape-bars", x: x + 1, y: y(many), width: wide - 2, height: base - y(many) }, svg("title", {}, `2^${LOW + STEP * bin} to 2^${LOW + STEP * (bin + 1)}: ${count(many)}`)));
    if (bin % 4 === 0) picture.append(svg("text", { x, y: base + 16, "text-anchor": "middle" }, `2^${LOW + STEP * bin}`));
  });
  for (const [power, text] of [[-24, "0 in fp16"], [-14, "fp16 subnormal"], [16, "fp16 infinite"]]) {
    const x = left + (wide * (power - LOW)) / STEP;
    const after = power > 0;
    picture.append(svg("path", { class: "limit", d: `M${x} 12V${base}` }), svg("text", { class: "limit-text", x: x + (after ? 5 : -5), y: 20, "text-anchor": after ? "start" : "end" }, text));
  }
  if (lost) {
    picture.append(svg("rect", { class: "lost-bars", x: right + 30, y: y(lost), width: 30, height: base - y(lost) }), svg("text", { class: "limit-text", x: right + 45, y: y(lost) - 6, "text-anchor": "middle" }, `! ${count(lost)}`));
  }
  picture.append(svg("text", { x: right + 45, y: base + 16, "text-anchor": "middle" }, "not finite"), svg("text", { x: left, y: base + 40 }, "magnitude of a value"));
  const caption = `${count(view.length)} tensor${view.length === 1 ? "" : "s"}${focus.path ? ` in ${focus.path}` : ""}; ${lost ? `${count(lost)} values are not finite` : "all values are finite"}${none ? `; ${count(none)} tensors are all zeros` : ""}.`;
  return [picture, element("figcaption", {}, caption)];
};
// One number of each tensor in the order of the file, the scale logarithmic
const dots = () => {
  const column = columns.findIndex(([name]) => name === data.chart), inside = new Set(view);
  const all = rows.map((row, index) => [index, number(row[FIRST + column])]).filter(([index, each]) => inside.has(index) && each > 0 && each < Infinity);
  if (!all.length) return [element("figcaption", {}, `No ${data.chart} above 0 among the tensors shown.`)];
  const low = Math.floor(Math.log10(all.reduce((least, [, each]) => Math.min(least, each), Infinity)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(all.reduce((largest, [, each]) => Math.max(largest, each), 0))));
  const width = 1100, left = 60, height = 150, base = height + 12;
  const x = (index) => left + ((width - left - 12) * (index + 0.5)) / rows.length;
  const y = (each) => base - (height * (Math.log10(each) - low)) / (high - low);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${base + 30}`, role: "img", "aria-label": `${data.chart} of each tensor; the table has the numbers` });
  for (let power = low; power <= high; power += Math.max(1, Math.ceil((high - low) / 5))) {
    picture.append(svg("path", { class: "axis", d: `M${left} ${y(10 ** power)}H${width}` }), svg("text", { x: left - 6, y: y(10 ** power) + 4, "text-anchor": "end" }, `1e${power}`));
  }
  picture.append(svg("path", { class: "shape-bars", d: all.map(([index, each]) => `M${x(index) - 2} ${y(each) - 2}h4v4h-4z`).join("") }));
  picture.append(svg("text", { x: left, y: base + 22 }, `${data.chart}, tensors in the order of the file`));
  const [worst, largest] = all.reduce((a, b) => (b[1] > a[1] ? b : a));
  return [picture, element("figcaption", {}, `Largest: ${short(largest)} in ${rows[worst][KEY]}.`)];
};
const chart = () => {
  const drawing = shapes >= 0 ? histogram : data.chart ? dots : null;
  $("values").hidden = !drawing;
  if (drawing) $("chart").replaceChildren(...drawing());
};
