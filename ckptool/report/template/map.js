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
