"use strict";

const HEAT = [[12, 7, 60], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

const page = document.getElementById("page");
const [layerSlider, layerOutput] = ["layer", "at"].map((id) => document.getElementById(id));
const [backButton, forthButton] = document.querySelectorAll(".layers button");
const state = { layer: 0, origin: false, all: false, follow: true, panel: null, panels: [] };
const layerCount = Number(layerSlider.max);

// -- data -------------------------------------------------------------------------------------------------------------------------

const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

/** The images of the page with what every model did on them: JSON, deflated and in base64. */
async function read() {
  const packed = new Blob([bytes(JSON.parse(document.getElementById("data").textContent))]);
  return new Response(packed.stream().pipeThrough(new DecompressionStream("deflate"))).json();
}

/** What one model did on one image; boxes and points in pixels of the image. */
class Model {
  constructor(facts) {
    Object.assign(this, facts);
    for (const maps of [this.all_maps, this.head_maps, this.origins]) if (maps) maps.values = bytes(maps.values);
  }

  describe(layer, query) { return `${this.name(layer, query)} ${this.scores[layer][query].toFixed(2)}`; }
  name(layer, query) { return this.classes[this.labels[layer][query]]; }
  isKept(query) { return this.kept.includes(query); }

  /** A box, or the two numbers of a point. */
  reference(layer, query) {
    const place = this.references?.[layer][query];
    return place && place[0] === place[2] && place[1] === place[3] ? place.slice(0, 2) : place;
  }

  /** Salient points of one head, or of all (head -1). */
  salientPoints(layer, query, head) {
    const points = this.salient?.[layer][this.kept.indexOf(query)] ?? [];
    return head < 0 ? points : points.slice(head, head + 1);
  }

  /** What a query attends to in a layer: by one head, or the mean of all (head -1). */
  attention(layer, query, head) {
    if (!this.isKept(query)) return this.map(this.all_maps, layer * this.queries + query);
    return this.map(this.head_maps, (layer * this.kept.length + this.kept.indexOf(query)) * (this.heads + 1) + head + 1);
  }

  /** The same traced through the encoder. */
  origin(layer, query) { return this.map(this.origins, layer * this.kept.length + this.kept.indexOf(query)); }

  /** Values 0..255 are shares of `top`, the share of the brightest cell; `lost` is outside the image. */
  map({ size: [h, w], values, top, lost }, i) {
    return { values: values.subarray(i * h * w, (i + 1) * h * w), h, w, top: top[i], lost: lost[i] };
  }

  /** The query for the object in a box, by the rule of Explanation.at: the detection that overlaps most, if by half; else the nearest. */
  closest(layer, box) {
    const boxes = this.boxes[layer], [x, y] = centre(box);
    const shares = this.found.map((query) => overlap(boxes[query], box)), most = Math.max(...shares);
    if (most >= 0.5) return this.found[shares.indexOf(most)];
    const away = this.order.map((query) => Math.hypot(centre(boxes[query])[0] - x, centre(boxes[query])[1] - y));
    return this.order[away.indexOf(Math.min(...away))];
  }
}

// -- small functions ----------------------------------------------------------------------------------------------------------------

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function make(tag, attributes = {}, ...children) {
  const element = set(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;
const area = (b) => Math.max(0, b[2] - b[0]) * Math.max(0, b[3] - b[1]);
const centre = (b) => (b.length === 2 ? b : [(b[0] + b[2]) / 2, (b[1] + b[3]) / 2]);
const distance = (a, b) => Math.hypot(centre(a)[0] - centre(b)[0], centre(a)[1] - centre(b)[1]);
const written = (b) => b.map(Math.round).join(", ").replace(/^([^,]+, [^,]+), /, "$1 to ");
const dots = (points) => points.map(([x, y]) => `M${x} ${y}h0`).join("");
const setBox = (rect, [x, y, x1, y1] = [0, 0, 0, 0]) => set(rect, { x, y, width: Math.max(0, x1 - x), height: Math.max(0, y1 - y) });

function overlap(a, b) {
  const both = area([Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
  return both / (area(a) + area(b) - both || 1);
}

/** Red, green, blue and opacity: what is not attended to stays visible, a little darker. */
const COLOURS = Array.from({ length: 256 }, (_, value) => {
  const at = value / 255 * (HEAT.length - 1), low = Math.min(HEAT.length - 2, Math.floor(at));
  return [...HEAT[low].map((c, i) => c + (HEAT[low + 1][i] - c) * (at - low)), 255 * (0.25 + 0.75 * Math.sqrt(value / 255))];
});

// -- one model on one image ---------------------------------------------------------------------------------------------------------

class Panel {
  constructor(model, image, group) {
    this.model = model;
    this.image = image;
    this.group = group;
    this.head = -1;
    this.pinned = model.chosen ?? model.order[0];
    this.hovered = null;
    this.pointed = null;
    this.element = document.getElementById(model.id);
    const find = (selector) => this.element.querySelector(selector);
    [this.stage, this.heat, this.overlay, this.boxes, this.tag] = [".stage", "canvas", "svg", ".boxes", ".tag"].map(find);
    [this.listTitle, this.list, this.title, this.live] = [".choose h4", ".list", "p.now", ".unseen"].map(find);
    [this.heads, this.coarse, this.scale, this.facts] = ["select", ".choice span", ".scale", "dl"].map(find);
    [this.rivals, this.rivalsTitle, this.rivalsNote] = [".rivals", ".rivals h4", ".rivals p"].map(find);
    this.rivalRows = [...this.rivals.querySelectorAll("button")];
    this.layerRows = [...find("tbody").children];
    this.views = [...this.element.querySelectorAll(".views button")];
    this.marks = Object.fromEntries([...find(".marks").children].map((mark) => [mark.getAttribute("class"), mark]));
    this.stage.prepend(make("img", { src: image.source, alt: image.name || "the image", draggable: "false" }));
    this.stage.style.maxWidth = `max(300px, calc((100vh - 120px) * ${image.width / image.height}))`;
    this.listen();
    this.fill();
  }

  get shown() { return this.hovered ?? this.pinned; }
  get layer() { return Math.min(state.layer, this.model.layers - 1); }
  get traced() { return state.origin && this.model.origins && this.model.isKept(this.shown); }
  get listed() { return state.all || !this.model.found.length ? this.model.order : this.model.found; }

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
    const point = (button) => {
      this.pointed = button;
      this.drawRival();
    };
    this.rivals.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") point(event.target.closest("button")); });
    this.rivals.addEventListener("focusin", (event) => point(event.target));
    for (const gone of ["pointerleave", "focusout"]) this.rivals.addEventListener(gone, () => point(null));
    this.rivalRows.forEach((row, i) => row.addEventListener("click", () => this.goTo(i)));
    this.layerRows.forEach((row, layer) => row.querySelector("button").addEventListener("click", () => setLayer(layer)));
    this.views.forEach((view, i) => view.addEventListener("click", () => setOrigin(i === 1)));
    // not on the drawing itself: Chromium makes an SVG element that listens to focus a stop of its own
    this.stage.addEventListener("focusin", (event) => this.hover(query(event)));
    this.stage.addEventListener("focusout", () => this.hover(null));
    for (const event of ["focusin", "pointerdown"]) this.element.addEventListener(event, () => { state.panel = this; });
    this.heads.addEventListener("change", () => this.setHead(Number(this.heads.value)));
  }

  /** The list and the boxes: detections, or every query. */
  fill() {
    const m = this.model, last = m.layers - 1, count = m.found.length;
    this.listTitle.textContent = this.listed === m.order ? `All ${m.queries} queries, best first`
      : `${count} ${count === 1 ? "detection" : "detections"}, best first`;
    this.items = new Map(this.listed.map((query, i) => [query, make("div", { role: "option", id: `${m.id}-q${query}`, "data-query": query },
      make("kbd", { "aria-hidden": "true" }, i < 9 ? `${i + 1}` : ""), make("b", {}, m.name(last, query)),
      make("span", { class: "n" }, m.scores[last][query].toFixed(2)), make("span", { class: "soft" }, `query ${query}`))]));
    this.list.replaceChildren(...this.items.values());
    const size = (query) => area(m.boxes[last][query]);
    this.rects = new Map([...this.listed].sort((a, b) => size(b) - size(a)).map((query) => {
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      return [query, set(rect, { "data-query": query, role: "button" })];
    }));
    const detected = new Set(m.found);
    for (const query of this.listed) {
      this.rects.get(query).classList.add(detected.has(query) ? "found" : "below");
      this.items.get(query).classList.toggle("below", !detected.has(query));
    }
    this.boxes.replaceChildren(...this.rects.values());
    this.boxes.classList.toggle("many", this.listed.length > 60);
    this.boxes.classList.toggle("crowd", count > 60);
    this.step();
  }

  /** Another layer. */
  step() {
    const m = this.model;
    for (const [query, rect] of this.rects) {
      set(setBox(rect, m.boxes[this.layer][query]), { "aria-label": `${m.describe(this.layer, query)}, query ${query}` });
      rect.classList.toggle("gone", this.layer >= m.present[query]);
    }
    this.show();
  }

  setHead(head) {
    this.head = head;
    this.heads.value = head;
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
    this.announce();
    if (!lead || !state.follow) return;
    const box = this.model.boxes[this.layer][query];
    for (const other of this.group) if (other !== this) other.pin(other.model.closest(other.layer, box), false);
  }

  /** For screen readers. */
  announce() {
    this.live.textContent = [this.title, ...this.facts.children].map((part) => part.textContent).join(", ");
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
    if (onStage) this.rects.get(query).focus({ preventScroll: true });
    this.scrollTo(query);
  }

  /** The rival in a row; the rows then show its own rivals. */
  goTo(place) {
    const { query } = this.model.rivals[this.shown].shown[place];
    this.pin(query);
    this.scrollTo(query);
    if (this.rivalRows[place].hidden) (this.rivalRows[0].hidden ? this.list : this.rivalRows[0]).focus({ preventScroll: true });
  }

  scrollTo(query) {
    const item = this.items.get(query), list = this.list;
    if (item) list.scrollTop = Math.min(item.offsetTop, Math.max(list.scrollTop, item.offsetTop + item.offsetHeight - list.clientHeight));
  }

  /** Everything about the query that is hovered, or else pinned. */
  show() {
    const m = this.model, query = this.shown, layer = this.layer, box = m.boxes[layer][query], map = this.map(layer);
    const pruned = layer >= m.present[query];
    const text = pruned ? `pruned after layer ${m.present[query]}` : m.describe(layer, query);
    this.title.replaceChildren(make("b", {}, text), ` query ${query}, layer ${layer + 1} of ${m.layers}`,
      state.layer > layer ? " (its last)" : "", this.traced && !pruned ? ": traced through the encoder" : "");
    this.showTag(text, box);
    this.showSelected(query);
    this.showMarks(query, layer);
    this.paint(map);
    for (const part of [this.heat, this.scale]) part.style.visibility = pruned ? "hidden" : "";
    this.scale.lastChild.textContent = `${percent(map.top)} of the attention in a cell`;
    this.heads.disabled = !m.isKept(query) || this.traced;
    this.coarse.textContent = m.isKept(query) ? "" : "only the mean is kept for this query";
    this.views.forEach((view, i) => {
      set(view, { "aria-pressed": Boolean(this.traced) === (i === 1) });
      view.disabled = !m.isKept(query);
    });
    const reference = m.reference(layer, query);
    const facts = pruned ? { "Last box": written(box) } : {
      Box: written(box),
      Reference: reference ? written(reference) : "none in this model",
      "Brightest cell": `${percent(map.top)} of the attention, ${(map.top * map.h * map.w).toFixed(1)} times uniform`,
      "Outside the image": percent(map.lost),
    };
    this.facts.replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
    this.showRivals(query, layer);
    this.showLayers(query, layer);
  }

  map(layer) {
    return this.traced ? this.model.origin(layer, this.shown) : this.model.attention(layer, this.shown, this.head);
  }

  showTag(text, box) {
    const left = Math.max(0, Math.min(100, 100 * box[0] / this.image.width)), top = 100 * box[1] / this.image.height;
    this.tag.textContent = text;
    this.tag.style.left = `max(0px, min(${left}%, 100% - ${this.tag.offsetWidth}px))`;
    this.tag.style.top = `${Math.max(0, Math.min(100, top))}%`;
    this.tag.style.transform = top < 8 ? "none" : "translateY(-100%)";
  }

  /** The query shown, the one pinned, and the one that Tab reaches among the boxes. */
  showSelected(query) {
    const stop = this.rects.has(this.pinned) ? this.pinned : this.listed[0];
    for (const [each, rect] of this.rects) {
      const item = this.items.get(each);
      for (const part of [rect, item]) part.classList.toggle("shown", each === query);
      set(rect, { tabindex: each === stop ? 0 : -1, "aria-pressed": each === this.pinned });
      set(item, { "aria-selected": each === this.pinned });
    }
    set(this.list, { "aria-activedescendant": this.items.get(this.pinned)?.id ?? "" });
  }

  showMarks(query, layer) {
    const m = this.model, start = m.reference(layer, query), marks = this.marks;
    const centres = m.boxes.map((boxes) => centre(boxes[query]));
    set(marks.trail, { d: `M${centres.slice(0, layer + 1).map((c) => c.join(" ")).join("L")}` });
    set(marks.steps, { d: dots(centres.slice(0, layer)) });
    set(marks.now, { d: dots([centres[layer]]) });
    for (const rect of [marks.under, marks.over]) setBox(rect, m.boxes[layer][query]);
    setBox(marks.reference, start?.length === 4 ? start : undefined);
    set(marks.point, { d: start ? dots([centre(start)]) : "" });
    set(marks.salient, { d: dots(m.salientPoints(layer, query, this.head)) });
  }

  paint({ values, h, w }) {
    if (this.heat.width !== w || this.heat.height !== h) [this.heat.width, this.heat.height] = [w, h];
    const context = this.heat.getContext("2d"), picture = context.createImageData(w, h);
    values.forEach((value, i) => picture.data.set(COLOURS[value], 4 * i));
    context.putImageData(picture, 0, 0);
  }

  /** The queries that compete for the object, and self-attention between them and this one in the layer. */
  showRivals(query, layer) {
    const m = this.model, { shown, more } = m.rivals[query];
    this.rivalsTitle.textContent = `Rivals: ${shown.length ? "queries that compete" : "no other query competes"} for this object`;
    this.rivalRows.forEach((row, i) => {
      row.hidden = i >= shown.length;
      if (row.hidden) return;
      const { query: other, fate, attends_to, attended_by } = shown[i];
      const scores = m.scores.flatMap((each, at) => [make(at === layer ? "b" : "span", {}, each[other].toFixed(2)), " "]);
      const text = [m.name(m.layers - 1, other), fate, `query ${other}`, ["score ", ...scores],
        `attends to this query ${percent(attends_to[layer])}, is attended to ${percent(attended_by[layer])}`];
      text.forEach((part, at) => row.children[at].replaceChildren(...[part].flat()));
    });
    const note = `Self-attention of layer ${layer + 1}; uniform attention is ${percent(1 / m.queries)}.`;
    this.rivalsNote.textContent = shown.length ? (more ? `The ${shown.length} strongest; there are more. ` : "") + note : "";
    this.drawRival();
  }

  /** The box of the rival under the pointer or in focus. */
  drawRival() {
    const rival = this.model.rivals[this.shown].shown[this.rivalRows.indexOf(this.pointed ?? document.activeElement)];
    setBox(this.marks.rival, rival && this.model.boxes[this.layer][rival.query]);
  }

  showLayers(query, current) {
    const m = this.model;
    this.layerRows.forEach((row, layer) => {
      const from = layer ? m.boxes[layer - 1][query] : m.reference(0, query);
      const moved = from ? `${distance(m.boxes[layer][query], from).toFixed(0)} px` : "–";
      const score = m.scores[layer][query].toFixed(2), outside = percent(this.map(layer).lost);
      const cells = layer < m.present[query] ? [m.name(layer, query), score, moved, outside] : ["pruned", "", "", ""];
      cells.forEach((text, i) => { row.children[i + 1].textContent = text; });
      row.removeAttribute("aria-current");
      if (layer === current) set(row, { "aria-current": "step" });
    });
  }
}

// -- the page -----------------------------------------------------------------------------------------------------------------------

function setLayer(layer) {
  state.layer = Math.max(0, Math.min(layerCount - 1, layer));
  layerSlider.value = state.layer + 1;
  layerOutput.textContent = `${state.layer + 1} of ${layerCount}`;
  set(layerSlider, { "aria-valuetext": `layer ${layerOutput.textContent}` });
  backButton.disabled = state.layer === 0;
  forthButton.disabled = state.layer === layerCount - 1;
  for (const panel of state.panels) panel.step();
  state.panel.announce();
}

/** Every panel shows cross-attention, or the same traced through the encoder. */
function setOrigin(value) {
  state.origin = value;
  for (const panel of state.panels) panel.show();
  state.panel.announce();
}

function pressed(event) {
  const { target, key } = event, panel = state.panel, box = target.closest("rect[data-query]");
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const select = target.matches("select"), own = select || target.matches("input[type=range]");
  if ((key === "ArrowLeft" || key === "ArrowRight") && !own) setLayer(state.layer + (key === "ArrowLeft" ? -1 : 1));
  else if ((key === "ArrowUp" || key === "ArrowDown") && !own) panel.move(key === "ArrowUp" ? -1 : 1);
  else if ((key === "Home" || key === "End") && target === panel.list) panel.choose(key === "Home" ? 0 : panel.listed.length - 1);
  else if (/^[1-9]$/.test(key) && !select) panel.choose(Number(key) - 1);
  else if (/^h$/i.test(key) && !select && !panel.heads.disabled) panel.setHead(panel.head + 1 < panel.model.heads ? panel.head + 1 : -1);
  else if (/^o$/i.test(key) && !select && panel.model.origins) setOrigin(!state.origin);
  else if (/^r$/i.test(key) && !select && !panel.rivalRows[0].hidden) panel.rivalRows[0].focus();
  else if ((key === "Enter" || key === " ") && box) panel.pin(Number(box.dataset.query));
  else if (key === "Escape") panel.choose(0);
  else return;
  event.preventDefault();
}

async function start() {
  state.layer = layerCount - 1;
  for (const image of await read()) {
    const group = [];
    for (const facts of image.models) group.push(new Panel(new Model(facts), image, group));
    state.panels.push(...group);
  }
  state.panel = state.panels[0];
  setLayer(state.layer);
  for (const panel of state.panels) if (panel === panel.group[0]) panel.pin(panel.pinned);
  for (const panel of state.panels) if (panel.model.chosen !== null) panel.pin(panel.model.chosen, false);
  const [opacity, all, follow] = ["opacity", "all", "follow"].map((id) => document.getElementById(id));
  const fade = () => page.style.setProperty("--opacity", opacity.value / 100);
  fade();
  opacity.addEventListener("input", fade);
  all.addEventListener("change", () => {
    state.all = all.checked;
    for (const panel of state.panels) panel.fill();
  });
  follow?.addEventListener("change", () => { state.follow = follow.checked; });
  layerSlider.addEventListener("input", () => setLayer(layerSlider.value - 1));
  backButton.addEventListener("click", () => setLayer(state.layer - 1));
  forthButton.addEventListener("click", () => setLayer(state.layer + 1));
  document.addEventListener("keydown", pressed);
  page.dataset.ready = "";
}

start();
