// A picture with boxes on it, live or still, and lines and zones above it that can be drawn and moved.
// Points are fractions of the picture, so nothing depends on the size at which it is shown.
import { changed, follow, leave } from "/assets/frames.js";

const STEP = 0.005; // of the picture, for one press of an arrow key
const NEAR_PX = 14; // a click this near to the first corner closes a zone

const clamp = (v) => Math.min(1, Math.max(0, Math.round(v * 10000) / 10000));
const colour = (cls) => `hsl(${((cls * 0.618034) % 1) * 360} 88% 59%)`; // as hawkeye.outputs draws them

export default {
  template: `
    <div class="hk-picture" :class="{ 'hk-editable': editable, 'hk-stale': stale || lost }" :style="{ aspectRatio: aspect }">
      <canvas ref="canvas" role="img" :aria-label="label"></canvas>
      <svg ref="svg" :viewBox="'0 0 ' + width + ' ' + height" :class="{ 'hk-drawing': drawing }"
           @pointerdown="press" @pointermove="move" @pointerup="release" @pointercancel="cancel" @dblclick.prevent="close">
        <g v-for="rule in shown" :key="rule.name" :class="['hk-rule', 'hk-' + rule.kind, { 'hk-chosen': rule.name === chosen }]"
           @click="!drawing && $emit('pick', { name: rule.name })">
          <polygon v-if="rule.kind === 'zone'" :points="path(rule.points)" />
          <template v-else>
            <line v-bind="ends(rule.points)" class="hk-halo" />
            <line v-bind="ends(rule.points)" />
            <path :d="arrow(rule.points)" class="hk-arrow" />
          </template>
          <text v-bind="anchor(rule)">{{ rule.label }}</text>
          <template v-if="editable && !drawing">
            <circle v-for="(p, i) in rule.points" :key="i" :cx="p[0] * width" :cy="p[1] * height" r="9" tabindex="0"
                    role="button" :aria-label="rule.spoken + ' ' + (i + 1)"
                    @pointerdown.stop.prevent="grab($event, rule, i)" @keydown="nudge($event, rule, i)" @focus="$emit('pick', { name: rule.name })" />
          </template>
        </g>
        <g v-if="sketch.length" class="hk-rule hk-sketch">
          <polyline :points="path(hover ? [...sketch, hover] : sketch)" />
          <circle v-for="(p, i) in sketch" :key="i" :cx="p[0] * width" :cy="p[1] * height" :r="i ? 4 : 8" />
        </g>
      </svg>
      <div v-if="notice" class="hk-notice" role="status">{{ notice }}</div>
    </div>`,
  props: {
    source: String, // whose newest frames are shown
    image: String, // or a still picture
    boxes: Array, // of the still picture: [x1, y1, x2, y2, class, text]
    rules: Array,
    chosen: String,
    drawing: String, // "line", "zone" or nothing
    editable: Boolean,
    stale: Boolean,
    label: String,
    ratio: Number,
    words: Object,
  },
  emits: ["pick", "moved", "drawn", "gaveup"],
  data() {
    return { width: 1, height: 1, held: null, sketch: [], hover: null, lost: false, empty: true, own: 0 };
  },
  computed: {
    aspect() {
      return this.own || this.ratio || 16 / 9;
    },
    shown() {
      return (this.rules || []).map((rule) =>
        this.held && this.held.name === rule.name ? { ...rule, points: this.held.points } : rule,
      );
    },
    notice() {
      return this.lost ? this.words?.lost : this.source && this.empty ? this.words?.none : "";
    },
  },
  watch: {
    rules: {
      deep: true,
      handler() {
        if (this.held && !this.held.dragging) this.held = null;
      },
    },
    drawing(kind) {
      this.sketch = [];
      this.hover = null;
    },
    image() {
      this.still();
    },
    boxes() {
      this.paint();
    },
  },
  mounted() {
    this.bitmap = null;
    this.marks = [];
    this.seen = true;
    this.sizes = new ResizeObserver(() => this.measure());
    this.sizes.observe(this.$el);
    this.sight = new IntersectionObserver((entries) => {
      this.seen = entries[entries.length - 1].isIntersecting;
      changed();
    });
    this.sight.observe(this.$el);
    // Before anything else: Enter would press the button that has the focus, Escape would close the dialog.
    window.addEventListener("keydown", this.keys, true);
    if (this.source) follow(this.feed());
    else this.still();
  },
  beforeUnmount() {
    this.gone = true;
    if (this.fed) leave(this.fed);
    this.sizes.disconnect();
    this.sight.disconnect();
    window.removeEventListener("keydown", this.keys, true);
    this.bitmap?.close();
  },
  methods: {
    // -- the picture
    feed() {
      this.fed = {
        source: this.source,
        visible: () => this.seen,
        wide: () => this.width * Math.min(2, window.devicePixelRatio || 1),
        take: (about, blob) => this.take(about, blob),
        gone: (lost) => (this.lost = lost),
      };
      return this.fed;
    },
    async take(about, blob) {
      const bitmap = await createImageBitmap(blob).catch(() => null); // a damaged one is left out
      if (bitmap) this.show(bitmap, about.boxes);
    },
    async still() {
      if (!this.image) return;
      const wanted = this.image;
      const answer = await fetch(`${window.path_prefix || ""}${wanted}`);
      if (!answer.ok) return void (this.lost = true);
      const bitmap = await createImageBitmap(await answer.blob());
      if (this.image === wanted) this.show(bitmap, null);
    },
    show(bitmap, boxes) {
      if (this.gone) return bitmap.close();
      this.bitmap?.close();
      this.bitmap = bitmap;
      this.marks = boxes;
      this.own = bitmap.width / bitmap.height;
      this.empty = false;
      this.paint();
    },
    measure() {
      this.width = this.$el.clientWidth || 1;
      this.height = this.$el.clientHeight || 1;
      this.paint();
      changed();
    },
    paint() {
      const canvas = this.$refs.canvas;
      if (!this.bitmap || !canvas) return;
      const ratio = window.devicePixelRatio || 1;
      const [w, h] = [Math.round(this.width * ratio), Math.round(this.height * ratio)];
      if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
      const pen = canvas.getContext("2d");
      pen.drawImage(this.bitmap, 0, 0, w, h);
      const size = Math.max(10, Math.min(14, this.width / 45)) * ratio;
      pen.font = `600 ${size}px system-ui, sans-serif`;
      pen.textBaseline = "top";
      pen.lineWidth = Math.max(1.5, this.width / 400) * ratio;
      for (const [x1, y1, x2, y2, cls, text] of this.marks || this.boxes || []) {
        const [left, top, wide, high] = [x1 * w, y1 * h, (x2 - x1) * w, (y2 - y1) * h];
        pen.strokeStyle = pen.fillStyle = colour(cls);
        pen.strokeRect(left, top, wide, high);
        const span = pen.measureText(text).width + 6 * ratio;
        const x = Math.max(0, Math.min(left - pen.lineWidth / 2, w - span));
        const y = top >= size * 1.3 ? top - size * 1.3 : top;
        pen.fillRect(x, y, span, size * 1.3);
        pen.fillStyle = "#10151a";
        pen.fillText(text, x + 3 * ratio, y + size * 0.15);
      }
    },
    // -- lines and zones
    path(points) {
      return points.map((p) => `${p[0] * this.width},${p[1] * this.height}`).join(" ");
    },
    ends([a, b]) {
      return { x1: a[0] * this.width, y1: a[1] * this.height, x2: b[0] * this.width, y2: b[1] * this.height };
    },
    anchor({ kind, points, label }) {
      // Where the label lies: above a zone; beside a line, on the side that its arrow does not point to.
      const wide = [...label].reduce((sum, c) => sum + (c > "\u2e7f" ? 13 : 8), 0); // about, in pixels
      const within = (x, before, after) => Math.max(4 + before, Math.min(x, this.width - 4 - after));
      const below = (y) => Math.max(16, Math.min(y, this.height - 6));
      const pixels = points.map((p) => [p[0] * this.width, p[1] * this.height]);
      const middle = pixels.reduce((sum, p) => sum + p[0], 0) / pixels.length;
      const top = Math.min(...pixels.map((p) => p[1]));
      const [[ax, ay], [bx, by]] = pixels;
      if (kind === "line" && Math.abs(by - ay) > Math.abs(bx - ax)) {
        const upper = ay < by ? ax : bx;
        if (by > ay) return { x: within(upper + 16, 0, wide), y: below(top + 12), "text-anchor": "start" };
        return { x: within(upper - 16, wide, 0), y: below(top + 12), "text-anchor": "end" };
      }
      const y = kind === "zone" ? top - 8 : (ay + by) / 2 + (bx > ax ? -12 : 24);
      return { x: within(middle, wide / 2, wide / 2), y: below(y), "text-anchor": "middle" };
    },
    arrow([a, b]) {
      // "in" is from the left hand to the right hand of one who walks from the first point to the second
      const [dx, dy] = [(b[0] - a[0]) * this.width, (b[1] - a[1]) * this.height];
      const length = Math.hypot(dx, dy) || 1;
      const [nx, ny, ux, uy] = [-dy / length, dx / length, dx / length, dy / length];
      const [mx, my] = [((a[0] + b[0]) / 2) * this.width, ((a[1] + b[1]) / 2) * this.height];
      const at = (n, u) => `${mx + nx * n + ux * u} ${my + ny * n + uy * u}`;
      return `M ${at(0, 0)} L ${at(24, 0)} M ${at(15, -7)} L ${at(26, 0)} L ${at(15, 7)}`;
    },
    at(event) {
      const box = this.$refs.svg.getBoundingClientRect();
      return [clamp((event.clientX - box.left) / box.width), clamp((event.clientY - box.top) / box.height)];
    },
    grab(event, rule, index) {
      if (event.button) return;
      event.target.focus();
      this.$refs.svg.setPointerCapture(event.pointerId);
      this.held = { name: rule.name, index, points: rule.points.map((p) => [...p]), dragging: true, moved: false };
    },
    press(event) {
      if (!this.drawing || event.button) return;
      event.preventDefault();
      const point = this.at(event);
      if (this.drawing === "line") {
        this.$refs.svg.setPointerCapture(event.pointerId);
        if (this.sketch.length === 0) this.sketch = [point];
        return;
      }
      const first = this.sketch[0];
      if (first && Math.hypot((first[0] - point[0]) * this.width, (first[1] - point[1]) * this.height) < NEAR_PX) this.close();
      else this.sketch = [...this.sketch, point];
    },
    move(event) {
      if (this.held?.dragging) {
        this.held.points[this.held.index] = this.at(event);
        this.held.moved = true;
      } else if (this.sketch.length) this.hover = this.at(event);
    },
    release(event) {
      if (this.held?.dragging) {
        this.held.dragging = false;
        if (this.held.moved) this.$emit("moved", { name: this.held.name, points: this.held.points });
        else this.held = null;
      } else if (this.drawing === "line" && this.sketch.length) {
        const point = this.at(event);
        const [dx, dy] = [(point[0] - this.sketch[0][0]) * this.width, (point[1] - this.sketch[0][1]) * this.height];
        if (Math.hypot(dx, dy) < 8) return; // a click: the second click is the end
        this.$emit("drawn", { kind: "line", points: [this.sketch[0], point] });
        this.sketch = [];
      }
    },
    cancel() {
      this.held = null;
      this.sketch = [];
    },
    close() {
      if (this.drawing !== "zone") return;
      const points = this.sketch.filter((p, i) => !i || p[0] !== this.sketch[i - 1][0] || p[1] !== this.sketch[i - 1][1]);
      if (points.length < 3) return;
      this.$emit("drawn", { kind: "zone", points });
      this.sketch = [];
    },
    keys(event) {
      if (!this.drawing || (event.key !== "Escape" && event.key !== "Enter")) return;
      if (event.key === "Enter" && !this.sketch.length) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      if (event.key === "Enter") return this.close();
      this.sketch = [];
      this.$emit("gaveup", {});
    },
    nudge(event, rule, index) {
      const step = STEP * (event.shiftKey ? 10 : 1);
      const by = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
      if (!by) return;
      event.preventDefault();
      const points = (this.held?.name === rule.name ? this.held.points : rule.points).map((p) => [...p]);
      points[index] = [clamp(points[index][0] + by[0]), clamp(points[index][1] + by[1])];
      this.held = { name: rule.name, index, points, dragging: false };
      clearTimeout(this.settle); // one change when the keys rest, not one for each press
      this.settle = setTimeout(() => this.$emit("moved", { name: rule.name, points }), 500);
    },
  },
};
