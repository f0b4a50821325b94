/* Returns every visible text with the ratio of its colour to what lies behind it (WCAG 2.2, 1.4.3), and every control
   with the ratio of its border to its surroundings (1.4.11). */
const parse = (colour) => colour.match(/[\d.]+/g).map(Number);
const linear = (share) => (share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4);
const luminance = (colour) => {
  const [red, green, blue] = parse(colour).slice(0, 3).map((value) => linear(value / 255));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const contrast = (one, other) => {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
const behind = (element) => {
  const colour = getComputedStyle(element).backgroundColor;
  return (parse(colour)[3] ?? 1) > 0 ? colour : behind(element.parentElement);
};
const texts = [], borders = [];
const scope = document.querySelector("dialog[open]") ?? document.body;
for (const element of scope.querySelectorAll(":not(option)")) {
  if (!element.checkVisibility()) continue;
  const style = getComputedStyle(element), name = element.id || element.className || element.tagName;
  const field = element.matches("input, textarea, select");
  const holdsText = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  if (field || holdsText) texts.push([name, contrast(style.color, behind(element))]);
  if (element.placeholder) {
    texts.push([`${name} placeholder`, contrast(getComputedStyle(element, "::placeholder").color, behind(element))]);
  }
  if ((field || element.tagName === "BUTTON") && style.borderTopWidth !== "0px") {
    borders.push([name, contrast(style.borderTopColor, behind(element.parentElement))]);
  }
}
return [texts, borders];
