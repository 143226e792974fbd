// What a person would stumble over in this page, as a list of texts. By the rules of WCAG 2.2, level AA.
const obstacles = [];
const say = (what, element) => obstacles.push(`${what}: ${element.outerHTML.slice(0, 120)}`);

const root = document.documentElement;
if (root.scrollWidth > root.clientWidth) {
  obstacles.push(`${root.scrollWidth} px wide, on a screen of ${root.clientWidth}`);
  for (const element of document.body.querySelectorAll("*")) {
    const box = element.getBoundingClientRect();
    if (box.right > root.clientWidth + 1 && box.width > 1) say(`reaches ${Math.round(box.right)} px`, element);
  }
}

const parse = colour => colour.match(/[\d.]+/g).map(Number);
const luminance = colour => {
  const [r, g, b] = colour.map(part => part / 255).map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = element => {
  for (; element; element = element.parentElement) {
    const colour = parse(getComputedStyle(element).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
  }
  return matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
};
const hasWords = element => [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
for (const element of document.body.querySelectorAll("*")) {
  if (!element.checkVisibility() || !(hasWords(element) || element.matches("input:not([type=hidden])"))) continue;
  const [a, b] = [luminance(parse(getComputedStyle(element).color).slice(0, 3)), luminance(ground(element))].sort((a, b) => b - a);
  const contrast = (a + 0.05) / (b + 0.05);
  if (contrast < 4.5) say(`contrast ${contrast.toFixed(1)}`, element);
}

const named = element => element.labels?.length || element.innerText?.trim() || element.ariaLabel;
for (const element of document.querySelectorAll("a, button, select, input:not([type=hidden])")) {
  if (!named(element)) say("no name", element);
  const box = element.getBoundingClientRect();
  if (element.matches("button, select, input:not([type=checkbox], [type=radio])") && box.height < 24) say("too small to hit", element);
}
const ids = [...document.querySelectorAll("[id]")].map(element => element.id);
for (const id of ids.filter((id, n) => ids.indexOf(id) !== n)) obstacles.push(`two elements have the id ${id}`);
return obstacles;
