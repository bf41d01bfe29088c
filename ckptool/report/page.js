"use strict";
(() => {
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

  // The module tree: segments of the keys, not deeper than a screen is high
  const DEEPEST = 12;
  const made = (name, path, parent) => ({ name, path, parent, children: new Map(), bytes: 0, tensors: 0, counts: new Array(statuses.length).fill(0), row: -1 });
  const top = made("all tensors", "", null);
  rows.forEach((row, index) => {
    const parts = row[KEY].split(".");
    const segments = parts.length <= DEEPEST ? parts : [...parts.slice(0, DEEPEST - 1), parts.slice(DEEPEST - 1).join(".")];
    let node = top, path = "";
    const add = (each) => { each.bytes += row[BYTES]; each.tensors += 1; each.counts[row[STATUS]] += 1; };
    add(top);
    segments.forEach((segment) => {
      path = path ? `${path}.${segment}` : segment;
      if (!node.children.has(segment)) node.children.set(segment, made(segment, path, node));
      node = node.children.get(segment);
      add(node);
    });
    node.row = index;
  });
  const said = (node) => {
    const parts = [node.path || "all tensors"];
    if (node.row >= 0 && !node.children.size) {
      const row = rows[node.row];
      columns.forEach(([name, kind], at) => {
        if (kind === "text" && texts[row[FIRST + at]]) parts.push(`${name} ${texts[row[FIRST + at]]}`);
      });
    } else {
      parts.push(`${count(node.tensors)} tensor${node.tensors === 1 ? "" : "s"}`);
    }
    parts.push(size(node.bytes));
    node.counts.forEach((many, status) => {
      if (many) parts.push(node.tensors === 1 ? statuses[status][2] : `${count(many)} ${statuses[status][2]}`);
    });
    return parts.join(", ");
  };

  // The map: each level a line, each module as wide as its bytes
  const LINE = 30, STRIP = 6, LEAST = 2, LEVELS = 7;
  let focus = top, chosen = top;
  const weight = (node) => Math.max(node.bytes, 1);
  const uniform = (node) => node.counts.filter(Boolean).length === 1;
  const drawn = (node, x, y, width, lines) => {
    const label = node.path ? node.name : "all tensors";
    const status = node.counts.findIndex(Boolean);
    const style = uniform(node) ? statuses[status][0] : "mixed";
    const group = svg("g", { role: "button", tabindex: node === chosen ? 0 : -1, "aria-label": said(node) });
    group.append(...box(style, x, y, width, LINE));
    if (style === "mixed") group.append(...strip(node, x, y + LINE - STRIP, width));
    group.append(svg("rect", { class: "frame", x: x + 0.5, y: y + 0.5, width: Math.max(width - 1, 0.5), height: LINE - 1 }));
    const sign = uniform(node) ? statuses[status][1] : "";
    const room = Math.floor((width - 10) / 7.3);
    const full = `${sign ? `${sign} ` : ""}${label}`;
    const long = `${full}  ${size(node.bytes)}`;
    const text = long.length <= room ? long : full.length <= room ? full : room >= 4 ? `${full.slice(0, room - 1)}…` : sign && room >= 1 ? sign : "";
    if (text) group.append(svg("text", { x: x + 5, y: y + 18 }, text));
    group.node = node;
    node.drawn = group;
    lines.push(group);
  };
  // Where several statuses are below a module, their shares; none so small that it is not seen.
  const strip = (node, x, y, width) => {
    const present = node.counts.map((many, status) => [status, many]).filter(([, many]) => many);
    const least = Math.min(4, width / present.length);
    const rest = width - least * present.length;
    const parts = [];
    for (const [status, many] of present) {
      const wide = least + (rest * many) / node.tensors;
      parts.push(...box(statuses[status][0], x, y, wide, STRIP));
      x += wide;
    }
    return parts;
  };
  const draw = () => {
    const width = Math.max($("map").clientWidth, 320), lines = [];
    let deepest = 0;
    const place = (node, x, wide, level) => {
      deepest = Math.max(deepest, level);
      drawn(node, x, level * LINE, wide, lines);
      if (level + 1 >= LEVELS) return;
      const total = [...node.children.values()].reduce((sum, child) => sum + weight(child), 0);
      let at = x;
      for (const child of node.children.values()) {
        const share = (wide * weight(child)) / total;
        child.drawn = null;
        if (share >= LEAST) place(child, at, share, level + 1);
        at += share;
      }
      // What is too small to be drawn by itself is shown by what is wrong with it.
      at = x;
      for (const child of node.children.values()) {
        const share = (wide * weight(child)) / total;
        if (share < LEAST) {
          const worst = child.counts.findLastIndex(Boolean);
          lines.push(svg("g", { "aria-hidden": "true" }, ...box(statuses[worst][0], at, (level + 1) * LINE, Math.max(share, statuses[worst][0] === "ok" ? 0 : 1), LINE)));
        }
        at += share;
      }
    };
    place(focus, 0, width, 0);
    const height = (deepest + 1) * LINE;
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-labelledby": "map-title" }, ...lines);
    $("map").replaceChildren(picture);
    if (!chosen.drawn?.isConnected) choose(focus, false);
    const above = [];
    for (let node = focus; node; node = node.parent) above.unshift(node);
    $("path").replaceChildren(...above.map((node) => {
      const button = element("button", { type: "button" }, node.name);
      if (node === focus) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => descend(node));
      return button;
    }));
  };
  const choose = (node, moved = true) => {
    chosen.drawn?.setAttribute("tabindex", -1);
    chosen = node;
    if (!node.drawn) return;
    node.drawn.setAttribute("tabindex", 0);
    $("told").textContent = said(node);
    if (moved) node.drawn.focus();
  };
  const descend = (node) => {
    focus = node;
    chosen = node;
    draw();
    choose(node, $("map").contains(document.activeElement) || document.activeElement === document.body);
    picked = null;
    show();
  };
  $("map").addEventListener("click", (event) => {
    const node = event.target.closest("g")?.node;
    if (node) descend(node === focus && node.parent ? node.parent : node);
  });
  $("map").addEventListener("mouseover", (event) => {
    const node = event.target.closest("g")?.node;
    if (node) $("told").textContent = said(node);
  });
  $("map").addEventListener("focusin", (event) => {
    if (event.target.node) choose(event.target.node, false);
  });
  $("map").addEventListener("keydown", (event) => {
    const seen = (node) => [...node.children.values()].filter((child) => child.drawn?.isConnected);
    const beside = (step) => {
      const all = chosen.parent && chosen !== focus ? seen(chosen.parent) : [chosen];
      return all[all.indexOf(chosen) + step];
    };
    const moves = {
      ArrowRight: () => beside(1), ArrowLeft: () => beside(-1),
      ArrowDown: () => seen(chosen)[0], ArrowUp: () => (chosen === focus ? null : chosen.parent),
    };
    if (moves[event.key]) {
      const next = moves[event.key]();
      if (next) choose(next);
    } else if (event.key === "Enter" || event.key === " ") {
      descend(chosen);
    } else if (event.key === "Escape" || event.key === "Backspace") {
      if (focus.parent) descend(focus.parent);
    } else {
      return;
    }
    event.preventDefault();
  });

  // The table: filtered by words, status, module and cause; sorted by any column
  const PORTION = 2000;
  const words = { text: "", kinds: new Set() };
  // What is wrong stands first, where anything is; within that the file's own order.
  const natural = tally.filter(Boolean).length > 1 ? { column: STATUS, down: true } : { column: -1, down: false };
  let picked = null, order = natural, most = PORTION, view = [];
  const value = (row, column) => {
    if (column === KEY) return row[KEY];
    if (column === STATUS) return row[STATUS];
    const kind = columns[column - FIRST][1];
    if (kind === "text") return texts[row[column]];
    return kind === "magnitudes" ? (row[column] ?? []).length : number(row[column]);
  };
  const collator = new Intl.Collator("en", { numeric: true });
  const sorted = (list) => {
    if (order.column < 0) return list;
    const sign = order.down ? -1 : 1;
    return [...list].sort((a, b) => {
      const [x, y] = [value(rows[a], order.column), value(rows[b], order.column)];
      if (typeof x === "string") return sign * collator.compare(x, y);
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return x === y ? a - b : sign * (x < y ? -1 : 1);
    });
  };
  const matching = () => {
    const wanted = words.text.toLowerCase().split(/\s+/).filter(Boolean);
    const inside = focus.path;
    const only = picked && new Set(picked);
    return rows.map((_, index) => index).filter((index) => {
      const row = rows[index], key = row[KEY];
      if (only && !only.has(index)) return false;
      if (words.kinds.size && !words.kinds.has(row[STATUS])) return false;
      if (inside && key !== inside && !key.startsWith(`${inside}.`)) return false;
      const low = key.toLowerCase();
      return wanted.every((word) => low.includes(word));
    });
  };
  const scales = columns.map(([, kind], at) => {
    const all = kind === "bar" ? rows.map((row) => number(row[FIRST + at])).filter((each) => each > 0 && each < Infinity) : [];
    if (!all.length) return [0, 0];
    const logs = all.map(Math.log10);
    return [logs.reduce((a, b) => Math.min(a, b)) - 0.5, logs.reduce((a, b) => Math.max(a, b))];
  });
  const cell = (row, at) => {
    const [, kind] = columns[at], content = row[FIRST + at];
    const td = element("td", { class: kind });
    if (kind === "text") td.append(texts[content]);
    else if (kind === "bytes") td.append(size(content));
    else if (kind === "number") td.append(short(content));
    else if (kind === "share") td.append(percent(content));
    else if (kind === "count") td.append(content ? element("span", { class: "bad-number" }, `! ${count(content)}`) : content === 0 ? "0" : "");
    else if (kind === "bar" && content !== null) {
      const [low, high] = scales[at], found = number(content);
      const share = found > 0 ? Math.min(1, high > low && found < Infinity ? (Math.log10(found) - low) / (high - low) : 1) : 0;
      td.append(element("span", { class: "bar-cell", "aria-hidden": "true" }, element("i", { style: `width:${100 * share}%` })), short(content));
    } else if (kind === "magnitudes" && content) td.append(spark(row, at));
    return td;
  };
  const line = (index) => {
    const row = rows[index];
    return element("tr", {},
      element("td", {}, ...breakable(row[KEY])),
      element("td", {}, element("span", { class: "tag" }, swatch(statuses[row[STATUS]][0]), labelled(row[STATUS]))),
      ...columns.map((_, at) => cell(row, at)));
  };
  const show = () => {
    view = sorted(matching());
    for (const other of document.querySelectorAll("[data-column]")) {
      const mine = Number(other.dataset.column) === order.column;
      other.parentElement.setAttribute("aria-sort", mine ? (order.down ? "descending" : "ascending") : "none");
    }
    $("table").tBodies[0].replaceChildren(...view.slice(0, most).map(line));
    const where = focus.path ? ` in ${focus.path}` : "";
    const shown = Math.min(most, view.length);
    $("count").textContent = `${shown < view.length ? `the first ${count(shown)} of ` : ""}${count(view.length)} of ${count(rows.length)} tensors${where}`;
    $("more").hidden = shown >= view.length;
    $("more").textContent = `Show ${count(Math.min(PORTION, view.length - shown))} more`;
    $("clear").hidden = !(focus.path || picked || words.text || words.kinds.size);
    chart();
  };
  $("more").addEventListener("click", () => { most += PORTION; show(); });
  $("search").addEventListener("input", () => { words.text = $("search").value; show(); });
  $("clear").addEventListener("click", () => {
    $("search").value = words.text = "";
    words.kinds.clear();
    for (const button of $("kinds").children) button.setAttribute("aria-pressed", "false");
    descend(top);
  });
  if (tally.filter(Boolean).length > 1) {
    statuses.forEach((_, index) => {
      if (!tally[index]) return;
      const button = element("button", { type: "button", "aria-pressed": "false" }, `${labelled(index)} ${count(tally[index])}`);
      button.addEventListener("click", () => {
        const on = !words.kinds.delete(index);
        if (on) words.kinds.add(index);
        button.setAttribute("aria-pressed", String(on));
        show();
      });
      $("kinds").append(button);
    });
  }
  for (const button of document.querySelectorAll("[data-column]")) {
    button.addEventListener("click", () => {
      const column = Number(button.dataset.column);
      const numeric = column === STATUS || column >= FIRST && columns[column - FIRST][1] !== "text";
      // First the way that is asked for most, then the other, then the order at the start.
      const first = order.column !== column;
      order = first ? { column, down: numeric } : order.down === numeric ? { column, down: !numeric } : natural;
      show();
    });
  }
  for (const button of document.querySelectorAll("[data-point]")) {
    button.addEventListener("click", () => {
      descend(top);
      picked = data.points[Number(button.dataset.point)];
      show();
      $("table-title").scrollIntoView();
      $("table").parentElement.focus({ preventScroll: true });
    });
  }

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

  draw();
  show();
  let drawnFor = $("map").clientWidth;
  new ResizeObserver(() => {
    if ($("map").clientWidth === drawnFor) return;
    drawnFor = $("map").clientWidth;
    draw();
  }).observe($("map"));
})();
