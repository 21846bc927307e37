// Returns the texts of a page that have a contrast below 4.5 (WCAG 2.2, success criterion 1.4.3), each look once.
const parse = (text) => {
  const numbers = (text.match(/[\d.]+(e-?\d+)?/g) || []).map(Number);
  if (text.startsWith("color(srgb")) return [...numbers.slice(0, 3).map((one) => 255 * one), numbers[3] ?? 1];
  return text.startsWith("rgb") ? [...numbers.slice(0, 3), numbers[3] ?? 1] : [0, 0, 0, 0];
};
const over = (top, below) => [0, 1, 2].map((at) => top[at] * top[3] + below[at] * (1 - top[3]));
const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
const luminance = (colour) => {
  const [red, green, blue] = colour.map((value) => linear(value / 255));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const contrast = (one, other) => {
  const [dark, light] = [luminance(one), luminance(other)].sort((left, right) => left - right);
  return (light + 0.05) / (dark + 0.05);
};
const ancestors = (node) => (node ? [...ancestors(node.parentElement), node] : []);
const ground = (node) => ancestors(node).reduce(
  (below, one) => over(parse(getComputedStyle(one).backgroundColor), below),
  document.documentElement.dataset.bsTheme === "dark" ? [0, 0, 0] : [255, 255, 255]);
const opacity = (node) => ancestors(node).reduce((all, one) => all * getComputedStyle(one).opacity, 1);

const pale = new Map();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.textContent.trim();
  const node = walker.currentNode.parentElement;
  const box = node.getBoundingClientRect();
  if (!text || !box.width || !box.height || !node.checkVisibility()) continue;
  const isDrawn = node instanceof SVGElement;
  const style = getComputedStyle(node);
  const behind = ground(isDrawn ? node.closest("div") : node);
  const ink = parse(isDrawn ? style.fill : style.color);
  ink[3] *= opacity(node);
  const found = contrast(over(ink, behind), behind);
  if (found < 4.5) pale.set(`${node.tagName} ${node.getAttribute("class")}`, `${found.toFixed(2)}: ${text}`);
}
return [...pale].map(([look, told]) => `${look} ${told}`);
