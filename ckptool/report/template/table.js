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
  const shown = Math.min(most, view.length), all = view.length === rows.length;
  const first = shown < view.length ? `the first ${count(shown)} of ` : all ? "all " : "";
  $("count").textContent = `${first}${all ? "" : `${count(view.length)} of `}${count(rows.length)} tensors${where}`;
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

// All is there: show it.
draw();
show();
let drawnFor = $("map").clientWidth;
new ResizeObserver(() => {
  if ($("map").clientWidth === drawnFor) return;
  drawnFor = $("map").clientWidth;
  draw();
}).observe($("map"));
