// Controls without a name and texts that are too pale, of a page.
() => {
  const shown = (e) => e.checkVisibility({ checkVisibilityCSS: true, checkOpacity: true }) && e.getBoundingClientRect().width > 1;
  const nameless = [...document.querySelectorAll("button, a, input, select, canvas, progress")].filter((e) => shown(e)
    && !(e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim() || e.title)).map((e) => e.outerHTML.slice(0, 90));
  const numbers = (text) => (text.match(/[0-9.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = numbers(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const pale = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walk.nextNode()); ) {
    const e = node.parentElement;
    if (!node.data.trim() || !shown(e) || e.closest("option, .skip, :disabled")) continue;
    const [a, b] = [light(numbers(getComputedStyle(e).color)), light(ground(e))].sort((p, q) => q - p);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) pale.push(`${node.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return { nameless, pale };
}
