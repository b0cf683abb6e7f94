"use strict";

const HEAT = [[12, 7, 60], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
const SVG = "http://www.w3.org/2000/svg";

// -- the data ---------------------------------------------------------------------------------------------------------------------

const KINDS = {
  boxes: Uint16Array, references: Uint16Array, salient: Uint16Array, scores: Uint16Array, labels: Uint16Array,
  lost: Uint16Array, heads_lost: Uint16Array,
  small: Uint8Array, mean: Uint8Array, heads: Uint8Array, down: Uint8Array, across: Uint8Array,
  origins: Uint8Array, origins_top: Float32Array, origins_lost: Uint16Array,
  rival_counts: Uint8Array, rival_queries: Uint16Array, fates: Uint8Array, silent_from: Uint8Array, reads: Uint16Array,
  small_top: Float32Array, mean_top: Float32Array, heads_top: Float32Array, down_top: Float32Array, across_top: Float32Array,
};

async function unpacked(text, kind) {
  const packed = atob(text);
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new kind(await new Response(stream).arrayBuffer());
}

/** What one model did on one image; places in pixels of the image. */
class Model {
  static async read(facts, image) {
    const names = Object.keys(facts.arrays);
    const arrays = await Promise.all(names.map((name) => unpacked(facts.arrays[name], KINDS[name])));
    return new Model(facts, image, Object.fromEntries(names.map((name, i) => [name, arrays[i]])));
  }

  constructor(facts, image, arrays) {
    Object.assign(this, facts);
    this.image = image;
    this.arrays = arrays;
    this.place = new Map(facts.kept.map((query, at) => [query, at]));
    this.detected = new Set(facts.found);
  }

  index(layer, query) { return layer * this.queries + query; }
  name(layer, query) { return this.classes[this.arrays.labels[this.index(layer, query)]]; }
  score(layer, query) { return this.arrays.scores[this.index(layer, query)] / 65535; }
  hasHeads(query) { return this.place.has(query); }
  /** How many layers a query took part in, where the model drops some between layers. */
  present(query) { return this.taken_part ? this.taken_part[query] : this.layers; }
  hasOrigin(query) { return "origins" in this.arrays && this.place.has(query); }

  /** Who wanted the same object: what became of each, and per layer how much it read this query, and was read by it. */
  rivalsOf(query) {
    const a = this.arrays, count = a.rival_counts[query];
    const shares = (first) => Array.from(a.reads.subarray(first, first + this.layers), (share) => share / 65535);
    return Array.from({ length: Math.min(count, this.most_rivals) }, (_, place) => {
      const i = query * this.most_rivals + place, silent = a.silent_from[i];
      const fate = this.fates[a.fates[i]] + (silent > 0 && silent < this.layers ? ` from layer ${silent + 1} on` : "");
      return { query: a.rival_queries[i], fate, reads: shares(2 * i * this.layers), isRead: shares((2 * i + 1) * this.layers) };
    });
  }
  hasMoreRivals(query) { return this.arrays.rival_counts[query] > this.most_rivals; }

  /** n numbers x, y, x, y.. from the i-th place of an array. */
  pixels(array, i, n) {
    return Array.from(array.subarray(i * n, i * n + n), (v, k) => (v / 65535 * 2 - 0.5) * (k % 2 ? this.image.height : this.image.width));
  }

  box(layer, query) { return this.pixels(this.arrays.boxes, this.index(layer, query), 4); }
  reference(layer, query) {
    if (!this.reference_size) return null;
    const place = this.pixels(this.arrays.references, this.index(layer, query), this.reference_size);
    return place[0] === place[2] && place[1] === place[3] ? place.slice(0, 2) : place;
  }

  /** Where a query's heads asked from: of one head, or of all (head -1). */
  salient(layer, query, head) {
    if (!this.arrays.salient || !this.hasHeads(query)) return [];
    const first = (layer * this.kept.length + this.place.get(query)) * this.heads;
    const chosen = head < 0 ? [...Array(this.heads).keys()] : [head];
    return chosen.map((h) => this.pixels(this.arrays.salient, first + h, 2));
  }

  /** What a query read in a layer: values 0..255 as shares of `top`, the share of the brightest cell; `lost` fell outside the image. */
  map(layer, query, head) {
    const a = this.arrays, all = this.index(layer, query);
    const kept = this.hasHeads(query), at = layer * this.kept.length + (kept ? this.place.get(query) : 0);
    if (!kept) return this.plane(a.small, a.small_top, all, this.small, a.lost[all]);
    if (head < 0) return this.plane(a.mean, a.mean_top, at, this.grid, a.lost[all]);
    const i = at * this.heads + head;
    if (a.heads) return this.plane(a.heads, a.heads_top, i, this.grid, a.heads_lost[i]);
    const [h, w] = this.grid, values = new Float32Array(h * w);
    for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) values[y * w + x] = a.down[i * h + y] * a.across[i * w + x] / 255;
    return { values, h, w, top: a.down_top[i] * a.across_top[i], lost: a.heads_lost[i] / 65535 };
  }

  /** The same followed through the encoder: where that came from. */
  origin(layer, query) {
    const a = this.arrays, at = layer * this.kept.length + this.place.get(query);
    return this.plane(a.origins, a.origins_top, at, this.small, a.origins_lost[at]);
  }

  plane(maps, tops, i, [h, w], lost) {
    return { values: maps.subarray(i * h * w, (i + 1) * h * w), h, w, top: tops[i], lost: lost / 65535 };
  }
}

// -- small things -----------------------------------------------------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function draw(tag, attributes = {}) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;
const area = (b) => Math.max(0, b[2] - b[0]) * Math.max(0, b[3] - b[1]);
const centre = (b) => (b.length === 2 ? b : [(b[0] + b[2]) / 2, (b[1] + b[3]) / 2]);
const written = (b) => {
  const [x0, y0, x1, y1] = b.map(Math.round);
  return b.length === 2 ? `${x0}, ${y0}` : `${x0}, ${y0} to ${x1}, ${y1}`;
};

function overlap(a, b) {
  const both = area([Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
  return both / (area(a) + area(b) - both || 1);
}

function setBox(rect, b) {
  rect.setAttribute("x", b[0]);
  rect.setAttribute("y", b[1]);
  rect.setAttribute("width", Math.max(0, b[2] - b[0]));
  rect.setAttribute("height", Math.max(0, b[3] - b[1]));
}

const dots = (points) => points.map((p) => `M${p[0]} ${p[1]}h0`).join("");

/** Red, green, blue and how much of the picture it covers: what was not read stays in sight, a little darker. */
function colour(value) {
  const at = value / 255 * (HEAT.length - 1), low = Math.min(HEAT.length - 2, Math.floor(at));
  return [...HEAT[low].map((c, i) => c + (HEAT[low + 1][i] - c) * (at - low)), 255 * (0.25 + 0.75 * Math.sqrt(value / 255))];
}
const COLOURS = Array.from({ length: 256 }, (_, value) => colour(value));

// -- one model on one image ---------------------------------------------------------------------------------------------------------

let counter = 0;

class Panel {
  constructor(model, group) {
    this.model = model;
    this.group = group;
    this.head = -1;
    this.pinned = model.chosen ?? model.order[0];
    this.hovered = null;
    this.pointed = null;
    this.id = `p${counter++}`;
    this.build();
  }

  get shown() { return this.hovered ?? this.pinned; }
  get layer() { return Math.min(state.layer, this.model.layers - 1); }
  get traced() { return state.origin && this.model.hasOrigin(this.shown); }
  get listed() { return state.all || !this.model.found.length ? this.model.order : this.model.found; }

  build() {
    const m = this.model;
    this.picture = make("img", { src: `data:image/jpeg;base64,${m.image.jpeg}`, alt: m.image.name || "the image", draggable: "false" });
    this.heat = make("canvas", { class: "heat", "aria-hidden": "true" });
    this.overlay = draw("svg", { viewBox: `0 0 ${m.image.width} ${m.image.height}`, preserveAspectRatio: "none", role: "group" });
    this.overlay.setAttribute("aria-label", `Boxes of ${m.title}`);
    this.boxes = draw("g", { class: "boxes" });
    this.marks = draw("g", { class: "marks", "aria-hidden": "true" });
    this.marked = {};
    for (const [name, tag] of [["reference", "rect"], ["trail", "path"], ["steps", "path"], ["rival", "rect"], ["under", "rect"], ["over", "rect"],
      ["salient", "path"], ["point", "path"], ["now", "path"]]) {
      this.marked[name] = this.marks.appendChild(draw(tag, { class: name }));
    }
    this.overlay.append(this.boxes, this.marks);
    this.tag = make("div", { class: "tag", "aria-hidden": "true" });
    this.stage = make("div", { class: "stage" }, this.picture, this.heat, this.overlay, this.tag);

    this.stage.style.maxWidth = `max(300px, calc((100vh - 120px) * ${m.image.width / m.image.height}))`;
    this.title = make("p", { class: "now" });
    this.live = make("p", { class: "unseen", "aria-live": "polite" });
    this.heads = make("select", { id: `${this.id}-head` }, make("option", { value: -1 }, `mean of ${m.heads}`));
    for (let h = 0; h < m.heads; h++) this.heads.append(make("option", { value: h }, `head ${h + 1}`));
    this.coarse = make("span", { class: "soft" });
    this.facts = make("dl");
    this.scale = make("p", { class: "scale" }, make("span", {}, "0"), make("i"), make("span"));
    this.rows = make("tbody");
    const head = make("tr", {}, ...["Layer", "Class", "Score", "Moved", "Lost"].map((name) => make("th", { scope: "col" }, name)));
    const table = make("table", {}, make("caption", {}, "Layer by layer"), make("thead", {}, head), this.rows);
    for (let layer = 0; layer < m.layers; layer++) {
      const button = make("button", { type: "button", "aria-label": `Go to layer ${layer + 1}` }, `${layer + 1}`);
      button.addEventListener("click", () => setLayer(layer));
      this.rows.append(make("tr", {}, make("th", { scope: "row" }, button), make("td"), make("td"), make("td"), make("td")));
    }
    this.list = make("div", { class: "list", role: "listbox", tabindex: "0", "aria-label": `Queries of ${m.title}`, id: `${this.id}-list` });
    this.listTitle = make("h4");
    this.views = [["What it read", false], ["Where that came from", true]].map(([text, value]) => {
      const view = button(text, text, () => setOrigin(value));
      view.setAttribute("aria-keyshortcuts", "o");
      return view;
    });
    const views = "origins" in m.arrays ? [make("p", { class: "views", role: "group", "aria-label": "The map shows" }, ...this.views)] : [];
    this.rivalsTitle = make("h4", { id: `${this.id}-rivals` });
    this.rivalRows = Array.from({ length: m.most_rivals }, (_, place) => {
      const row = make("button", { type: "button" }, make("b"), make("span", { class: "soft fate" }), make("span", { class: "soft q" }),
        make("span", { class: "n" }), make("span", { class: "soft reads" }));
      row.addEventListener("click", () => this.goTo(place));
      return row;
    });
    this.rivalsNote = make("p", { class: "soft" });
    this.rivals = make("div", { class: "rivals", role: "group", "aria-labelledby": `${this.id}-rivals` }, this.rivalsTitle, ...this.rivalRows,
      this.rivalsNote);
    const choice = make("p", { class: "choice" }, make("label", { for: `${this.id}-head` }, "Heads "), this.heads, " ", this.coarse);
    const counts = `${m.queries} queries, ${m.layers} layers, ${m.heads} heads; detections score ${m.threshold.toFixed(2)} or more`;
    this.element = make("article", { class: "panel", id: this.id, "aria-labelledby": `${this.id}-title` },
      make("header", {}, make("h3", { id: `${this.id}-title` }, m.title), make("p", { class: "soft" }, counts)), this.stage,
      make("div", { class: "choose" }, this.listTitle, this.list),
      make("div", { class: "told" }, this.title, this.live, ...views, choice, this.scale, this.facts,
        this.rivals, table));
    this.listen();
    this.fill();
  }

  listen() {
    const query = (event) => {
      const found = event.target.closest("[data-query]");
      return found ? Number(found.dataset.query) : null;
    };
    for (const part of [this.overlay, this.list]) {
      // not pointerover: that also comes when keys scroll the list under a mouse at rest
      part.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") this.hover(query(event)); });
      part.addEventListener("pointerleave", () => this.hover(null));
      part.addEventListener("click", (event) => { if (query(event) !== null) this.pin(query(event)); });
    }
    const point = (event) => {
      this.pointed = event.target.closest("button");
      this.drawRival();
    };
    this.rivals.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") point(event); });
    this.rivals.addEventListener("focusin", point);
    for (const gone of ["pointerleave", "focusout"]) this.rivals.addEventListener(gone, () => { this.pointed = null; this.drawRival(); });
    // not on the drawing itself: Chromium makes an SVG element that listens to focus a stop of its own
    this.stage.addEventListener("focusin", (event) => this.hover(query(event)));
    this.stage.addEventListener("focusout", () => this.hover(null));
    this.element.addEventListener("focusin", () => { state.panel = this; });
    this.element.addEventListener("pointerdown", () => { state.panel = this; });
    this.heads.addEventListener("change", () => { this.head = Number(this.heads.value); this.show(); });
  }

  /** The list and the boxes: detections, or every query. */
  fill() {
    const m = this.model, last = m.layers - 1, every = this.listed.length === m.queries;
    const title = every ? `All ${m.queries} queries, best first` : `${m.found.length === 1 ? "1 detection" : `${m.found.length} detections`}, best first`;
    this.listTitle.textContent = title;
    this.items = new Map();
    this.rects = new Map();
    const items = this.listed.map((query, i) => {
      const item = make("div", { role: "option", id: `${this.id}-q${query}`, "data-query": query, "aria-selected": "false" },
        make("kbd", { "aria-hidden": "true" }, i < 9 ? `${i + 1}` : ""), make("b", {}, m.name(last, query)),
        make("span", { class: "n" }, m.score(last, query).toFixed(2)), make("span", { class: "soft" }, `query ${query}`));
      if (!m.detected.has(query)) item.classList.add("below");
      this.items.set(query, item);
      return item;
    });
    this.list.replaceChildren(...items);
    const rects = [...this.listed].sort((a, b) => area(m.box(last, b)) - area(m.box(last, a))).map((query) => {
      const rect = draw("rect", { "data-query": query, role: "button", tabindex: "-1", "aria-pressed": "false" });
      rect.setAttribute("class", m.detected.has(query) ? "found" : "below");
      this.rects.set(query, rect);
      return rect;
    });
    this.boxes.replaceChildren(...rects);
    this.boxes.classList.toggle("many", rects.length > 60);
    this.boxes.classList.toggle("crowd", m.found.length > 60);
    this.step();
  }

  /** Another layer. */
  step() {
    const m = this.model;
    for (const [query, rect] of this.rects) {
      setBox(rect, m.box(this.layer, query));
      rect.setAttribute("aria-label", `${m.name(this.layer, query)} ${m.score(this.layer, query).toFixed(2)}, query ${query}`);
      rect.classList.toggle("gone", this.layer >= m.present(query));
    }
    this.show();
  }

  hover(query) {
    if (query === this.hovered) return;
    this.hovered = query;
    this.show();
  }

  pin(query, lead = true) {
    this.pinned = query;
    this.hovered = null;
    this.show();
    this.say();
    if (lead && state.follow) for (const other of this.group) if (other !== this) other.pin(other.closest(this.model.box(this.layer, query)), false);
  }

  /** For those who listen. */
  say() {
    this.live.textContent = [this.title, ...this.facts.children].map((part) => part.textContent).join(", ");
  }

  /** The query for the object in a box, by the rule of Explanation.at: the detection that overlaps most, if by half; else the nearest. */
  closest(box) {
    const m = this.model, [x, y] = centre(box);
    const shares = m.found.map((query) => overlap(m.box(this.layer, query), box)), most = Math.max(...shares);
    if (most >= 0.5) return m.found[shares.indexOf(most)];
    const away = m.order.map((query) => Math.hypot(centre(m.box(this.layer, query))[0] - x, centre(m.box(this.layer, query))[1] - y));
    return m.order[away.indexOf(Math.min(...away))];
  }

  /** The query `by` places further in the list. */
  move(by) {
    const at = this.listed.indexOf(this.pinned);
    this.choose(Math.max(0, Math.min(this.listed.length - 1, at < 0 ? 0 : at + by)));
  }

  choose(place) {
    const query = this.listed[place];
    if (query === undefined) return;
    const onStage = this.overlay.contains(document.activeElement);
    this.pin(query);
    if (onStage) this.rects.get(query)?.focus({ preventScroll: true });
    this.scrollTo(query);
  }

  /** The rival in a row, whose own rivals are then in the rows. */
  goTo(place) {
    const { query } = this.model.rivalsOf(this.shown)[place];
    this.pin(query);
    this.scrollTo(query);
    if (this.rivalRows[place].hidden) (this.rivalRows[0].hidden ? this.list : this.rivalRows[0]).focus({ preventScroll: true });
  }

  scrollTo(query) {
    if (!this.items.has(query)) return;
    const item = this.items.get(query), list = this.list;
    if (item.offsetTop < list.scrollTop) list.scrollTop = item.offsetTop;
    if (item.offsetTop + item.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = item.offsetTop + item.offsetHeight - list.clientHeight;
  }

  /** Everything about the query that is hovered, or else pinned. */
  show() {
    const m = this.model, query = this.shown, layer = this.layer;
    this.mark(query);
    const map = this.map(layer), gone = layer >= m.present(query);
    this.paint(map);
    for (const part of [this.heat, this.scale]) part.style.visibility = gone ? "hidden" : "";
    this.trail(query, layer);
    const text = gone ? `dropped after layer ${m.present(query)}` : `${m.name(layer, query)} ${m.score(layer, query).toFixed(2)}`;
    const box = m.box(layer, query);
    this.tag.textContent = text;
    const left = Math.max(0, Math.min(100, 100 * box[0] / m.image.width)), top = 100 * box[1] / m.image.height;
    this.tag.style.left = `max(0px, min(${left}%, 100% - ${this.tag.offsetWidth}px))`;
    this.tag.style.top = `${Math.max(0, Math.min(100, top))}%`;
    this.tag.style.transform = top < 8 ? "none" : "translateY(-100%)";
    this.title.replaceChildren(make("b", {}, text), ` query ${query}, layer ${layer + 1} of ${m.layers}`);
    if (m.layers < state.layers && state.layer > layer) this.title.append(" (its last)");
    if (this.traced && !gone) this.title.append(": where what it read came from");
    this.heads.disabled = !m.hasHeads(query) || this.traced;
    this.coarse.textContent = m.hasHeads(query) ? "" : "only the mean is kept for this query";
    this.views.forEach((view, i) => {
      view.setAttribute("aria-pressed", this.traced === (i === 1));
      view.disabled = !m.hasOrigin(query);
    });
    const reference = m.reference(layer, query);
    const facts = gone ? [["Last box", written(box)]] : [["Box", written(box)], ["Reference", reference ? written(reference) : "none in this model"],
      ["Brightest cell", `${percent(map.top)} of ${this.traced ? "the map" : "what it read"}, ${(map.top * map.h * map.w).toFixed(1)} times an even spread`],
      ["Lost outside the image", percent(map.lost)]];
    this.facts.replaceChildren(...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
    this.scale.lastChild.textContent = `${percent(map.top)} of the reading in a cell`;
    this.compete(query, layer);
    this.table(query, layer);
  }

  map(layer) {
    return this.traced ? this.model.origin(layer, this.shown) : this.model.map(layer, this.shown, this.head);
  }

  /** Who wanted the same object, and how self-attention went between them in the layer. */
  compete(query, layer) {
    const m = this.model, rivals = m.rivalsOf(query);
    this.rivalsTitle.textContent = rivals.length ? "Rivals: who wanted the same object" : "Rivals: no other query wanted this object";
    this.rivalRows.forEach((row, place) => {
      row.hidden = place >= rivals.length;
      if (row.hidden) return;
      const { query: other, fate, reads, isRead } = rivals[place], [name, became, number, scores, read] = row.children;
      name.textContent = m.name(m.layers - 1, other);
      became.textContent = fate;
      number.textContent = `query ${other}`;
      const steps = Array.from({ length: m.layers }, (_, i) => make(i === layer ? "b" : "span", {}, m.score(i, other).toFixed(2)));
      scores.replaceChildren("score ", ...steps.flatMap((step) => [step, " "]));
      read.textContent = `reads this query ${percent(reads[layer])}, is read ${percent(isRead[layer])}`;
    });
    const more = m.hasMoreRivals(query) ? `The ${m.most_rivals} strongest; there are more. ` : "";
    this.rivalsNote.textContent = rivals.length ? `${more}Self-attention of layer ${layer + 1}; an even reading is ${percent(1 / m.queries)}.` : "";
    this.drawRival();
  }

  /** The box of the rival that is pointed at or has the focus. */
  drawRival() {
    const row = this.pointed ?? document.activeElement, place = this.rivalRows.indexOf(row);
    const rival = place < 0 || row.hidden ? null : this.model.rivalsOf(this.shown)[place];
    setBox(this.marked.rival, rival ? this.model.box(this.layer, rival.query) : [0, 0, 0, 0]);
  }

  mark(query) {
    for (const at of [this.was, this.wasPinned]) {
      this.rects.get(at)?.classList.remove("shown");
      this.rects.get(at)?.setAttribute("tabindex", "-1");
      this.rects.get(at)?.setAttribute("aria-pressed", "false");
      this.items.get(at)?.classList.remove("shown");
      this.items.get(at)?.setAttribute("aria-selected", "false");
    }
    this.rects.get(query)?.classList.add("shown");
    this.items.get(query)?.classList.add("shown");
    const stop = this.rects.get(this.pinned) ?? this.rects.get(this.listed[0]);
    stop?.setAttribute("tabindex", "0");
    this.rects.get(this.pinned)?.setAttribute("aria-pressed", "true");
    this.items.get(this.pinned)?.setAttribute("aria-selected", "true");
    if (this.items.has(this.pinned)) this.list.setAttribute("aria-activedescendant", `${this.id}-q${this.pinned}`);
    else this.list.removeAttribute("aria-activedescendant");
    this.was = query;
    this.wasPinned = this.items.has(this.pinned) ? this.pinned : this.listed[0];
  }

  paint({ values, h, w }) {
    if (this.heat.width !== w || this.heat.height !== h) [this.heat.width, this.heat.height] = [w, h];
    const context = this.heat.getContext("2d"), picture = context.createImageData(w, h);
    for (let i = 0; i < values.length; i++) picture.data.set(COLOURS[Math.round(values[i])], 4 * i);
    context.putImageData(picture, 0, 0);
  }

  trail(query, layer) {
    const m = this.model, { reference, trail, steps, under, over, salient, point, now } = this.marked;
    const centres = Array.from({ length: m.layers }, (_, i) => centre(m.box(i, query)));
    trail.setAttribute("d", `M${centres.slice(0, layer + 1).map((c) => c.join(" ")).join("L")}`);
    steps.setAttribute("d", dots(centres.slice(0, layer)));
    now.setAttribute("d", dots([centres[layer]]));
    for (const rect of [under, over]) setBox(rect, m.box(layer, query));
    const start = m.reference(layer, query);
    setBox(reference, start?.length === 4 ? start : [0, 0, 0, 0]);
    point.setAttribute("d", start ? dots([centre(start)]) : "");
    salient.setAttribute("d", dots(m.salient(layer, query, this.head)));
  }

  table(query, current) {
    const m = this.model;
    [...this.rows.children].forEach((row, layer) => {
      const from = layer ? centre(m.box(layer - 1, query)) : m.reference(0, query) && centre(m.reference(0, query));
      const to = centre(m.box(layer, query));
      const moved = from ? `${Math.hypot(to[0] - from[0], to[1] - from[1]).toFixed(0)} px` : "–";
      const { lost } = this.map(layer);
      const cells = layer < m.present(query) ? [m.name(layer, query), m.score(layer, query).toFixed(2), moved, percent(lost)] : ["dropped", "", "", ""];
      cells.forEach((text, i) => { row.children[i + 1].textContent = text; });
      if (layer === current) row.setAttribute("aria-current", "step");
      else row.removeAttribute("aria-current");
    });
  }
}

// -- the page -----------------------------------------------------------------------------------------------------------------------

const state = { layer: 0, layers: 1, origin: false, all: false, follow: true, panel: null, panels: [] };
const page = document.getElementById("page");
const controls = {};

function setLayer(layer) {
  const next = Math.max(0, Math.min(state.layers - 1, layer));
  state.layer = next;
  controls.layer.value = next + 1;
  controls.layer.setAttribute("aria-valuetext", `layer ${next + 1} of ${state.layers}`);
  controls.at.textContent = `${next + 1} of ${state.layers}`;
  controls.back.disabled = next === 0;
  controls.forth.disabled = next === state.layers - 1;
  for (const panel of state.panels) panel.step();
  state.panel.say();
}

/** Every panel shows what its query read, or where that came from. */
function setOrigin(value) {
  state.origin = value;
  for (const panel of state.panels) panel.show();
  state.panel.say();
}

function button(text, label, act) {
  const element = make("button", { type: "button", "aria-label": label }, text);
  element.addEventListener("click", act);
  return element;
}

function checkbox(id, text, value, act) {
  const box = make("input", { type: "checkbox", id });
  box.checked = value;
  box.addEventListener("change", () => act(box.checked));
  return make("label", { for: id }, box, ` ${text}`);
}

function toolbar() {
  controls.layer = make("input", { type: "range", id: "layer", min: 1, max: state.layers, step: 1 });
  controls.layer.addEventListener("input", () => setLayer(controls.layer.value - 1));
  controls.at = make("output", { for: "layer", id: "at" });
  controls.back = button("‹", "Previous layer", () => setLayer(state.layer - 1));
  controls.forth = button("›", "Next layer", () => setLayer(state.layer + 1));
  const opacity = make("input", { type: "range", id: "opacity", min: 0, max: 100, step: 5, value: 80 });
  const fade = () => page.style.setProperty("--opacity", opacity.value / 100);
  opacity.addEventListener("input", fade);
  fade();
  const options = make("div", { class: "options" }, make("label", { for: "opacity" }, "Opacity of the map ", opacity),
    checkbox("all", "All queries", false, (value) => { state.all = value; for (const panel of state.panels) panel.fill(); }));
  if (state.panels.some((panel) => panel.group.length > 1)) {
    options.append(checkbox("follow", "Same object in every model", true, (value) => { state.follow = value; }));
  }
  const keys = make("details", {}, make("summary", {}, "Keys and marks"));
  const traced = state.panels.some((panel) => "origins" in panel.model.arrays);
  for (const [key, what] of [["← →", "layer"], ["↑ ↓", "query"], ["1 … 9", "one of the first nine queries"], ["H", "next head"],
    ...(traced ? [["O", "what it read, or where that came from: the same, followed through the last encoder layer"]] : []),
    ["R", "its rivals; Tab to the next one"], ["Enter", "keep the focused box, or go to the focused rival"], ["Esc", "back to the best query"]]) {
    keys.append(make("p", {}, make("kbd", {}, key), ` ${what}`));
  }
  for (const [mark, what] of [["box", "the query's box after this layer"], ["dash", "where the layer started from: its reference"],
    ["dot", "centres of its boxes, layer by layer"], ["thin", "box of the rival that is pointed at or focused"], ...(state.panels.some((p) => p.model.arrays.salient) ? [["cross", "points its heads asked from"]] : [])]) {
    keys.append(make("p", {}, make("i", { class: `sign ${mark}` }), ` ${what}`));
  }
  return [make("div", { class: "layers", role: "group", "aria-label": "Decoder layer" }, make("label", { for: "layer" }, "Layer"), controls.back,
    controls.layer, controls.forth, controls.at), options, keys];
}

function pressed(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || !state.panel) return;
  const { target, key } = event, panel = state.panel;
  const own = target.matches("select, input[type=range]");
  const box = target.closest("rect[data-query]");
  if ((key === "ArrowLeft" || key === "ArrowRight") && !own) setLayer(state.layer + (key === "ArrowLeft" ? -1 : 1));
  else if ((key === "ArrowUp" || key === "ArrowDown") && !own) panel.move(key === "ArrowUp" ? -1 : 1);
  else if ((key === "Home" || key === "End") && target === panel.list) panel.choose(key === "Home" ? 0 : panel.listed.length - 1);
  else if (/^[1-9]$/.test(key) && !target.matches("select")) panel.choose(Number(key) - 1);
  else if (key.toLowerCase() === "h" && !target.matches("select") && !panel.heads.disabled) {
    panel.head = panel.head + 1 < panel.model.heads ? panel.head + 1 : -1;
    panel.heads.value = panel.head;
    panel.show();
  } else if (key.toLowerCase() === "o" && !target.matches("select") && "origins" in panel.model.arrays) setOrigin(!state.origin);
  else if (key.toLowerCase() === "r" && !target.matches("select") && !panel.rivalRows[0].hidden) panel.rivalRows[0].focus();
  else if ((key === "Enter" || key === " ") && box) panel.pin(Number(box.dataset.query));
  else if (key === "Escape") panel.choose(0);
  else return;
  event.preventDefault();
}

async function start() {
  const { images } = JSON.parse(document.getElementById("data").textContent);
  const sections = [];
  for (const image of images) {
    const models = await Promise.all(image.models.map((facts) => Model.read(facts, image)));
    state.layers = Math.max(state.layers, ...models.map((model) => model.layers));
    sections.push([image, models]);
  }
  state.layer = state.layers - 1;
  const built = sections.map(([image, models]) => {
    const group = [];
    for (const model of models) group.push(new Panel(model, group));
    state.panels.push(...group);
    const size = `${image.width} × ${image.height} pixels`;
    const heading = make("h2", {}, ...(image.name ? [image.name, " ", make("span", { class: "soft" }, size)] : [size]));
    return make("section", {}, heading, make("div", { class: `panels of${group.length}` }, ...group.map((panel) => panel.element)));
  });
  state.panel = state.panels[0];
  const [layers, options, keys] = toolbar();
  page.append(options, keys, layers, ...built);
  setLayer(state.layer);
  for (const panel of state.panels) if (panel === panel.group[0]) panel.pin(panel.pinned);
  for (const panel of state.panels) if (panel.model.chosen !== null) panel.pin(panel.model.chosen, false);
  document.addEventListener("keydown", pressed);
  page.dataset.ready = "";
}

start();
