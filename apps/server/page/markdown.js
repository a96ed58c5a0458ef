// Markdown to nodes: what models write (headings, lists, quotes, tables, code, emphasis, links), not
// all of CommonMark. Text only ever becomes text nodes, so no markup of a model is markup of the
// page. Pictures are not loaded: they become links.

const MAX_DEPTH = 12; // of lists and quotes in each other; deeper ones stay as text
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(\S.*)$/;
const RULE = /^ {0,3}(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$/;
const ITEM = /^( *)(?:([-*+])|(\d{1,9})[.)])(?:\s+|$)/;
const QUOTE = /^ {0,3}> ?/;
const TABLE_RULE = /^\|?:?-+:?(?:\|:?-+:?)*\|?$/; // of a line without its blanks

// Every repetition has a bound, so that no text takes long: spans of more than 2,000 characters
// are left as they are.
const SPAN = new RegExp([
  String.raw`\\([!-\/:-@\[-\x60{-~])`,                                  // 1: an escaped sign
  String.raw`(\x60{1,9})(?!\x60)([^]{0,2000}?[^\x60])\2(?!\x60)`,       // 2, 3: code
  String.raw`\*\*(?=\S)([^]{0,2000}?\S)\*\*`,                           // 4: strong
  String.raw`\*(?=[^\s*])([^*]{0,2000}?[^\s*])\*`,                      // 5: emphasis
  String.raw`(?<![A-Za-z0-9_])__(?=\S)([^]{0,2000}?\S)__(?![A-Za-z0-9_])`, // 6: strong
  String.raw`(?<![A-Za-z0-9_])_(?=[^\s_])([^_]{0,2000}?[^\s_])_(?![A-Za-z0-9_])`, // 7: emphasis
  String.raw`~~(?=\S)([^]{0,2000}?\S)~~`,                               // 8: struck out
  String.raw`!?\[([^\]\n]{0,500})\]\(\s{0,9}<?([^\s)<>]{0,2000})>?(?:\s{1,9}"[^"\n]{0,500}")?\s{0,9}\)`, // 9, 10
  String.raw`(?<![A-Za-z0-9])(https?:\/\/[^\s<>"'\x60]{1,2000})`,       // 11: an address
].join("|"), "g");

function make(name, children = [], attributes = {}) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function link(address, children) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  return make("a", children, { href: url.href, rel: "noopener noreferrer nofollow", target: "_blank" });
}

// The nodes of a piece of text without blocks.
function spans(text, depth = 0) {
  if (depth > 4) return [text];
  const nodes = [];
  let end = 0;
  for (const found of text.matchAll(SPAN)) {
    const inner = (group) => spans(found[group], depth + 1);
    let node = null;
    let taken = found[0];
    if (found[1] !== undefined) node = found[1];
    else if (found[3] !== undefined) node = make("code", [found[3].replace(/^ (.*[^ ].*) $/s, "$1").replace(/\n/g, " ")]);
    else if (found[4] !== undefined) node = make("strong", inner(4));
    else if (found[5] !== undefined) node = make("em", inner(5));
    else if (found[6] !== undefined) node = make("strong", inner(6));
    else if (found[7] !== undefined) node = make("em", inner(7));
    else if (found[8] !== undefined) node = make("del", inner(8));
    else if (found[10] !== undefined) node = link(found[10], found[9] ? [found[9]] : [found[10]]);
    else if (found[11] !== undefined) {
      taken = found[11].replace(/[.,;:!?)\]*_]{1,20}$/, "");
      node = link(taken, [taken]);
    }
    if (node === null) continue; // stays text
    nodes.push(text.slice(end, found.index), node);
    end = found.index + taken.length;
  }
  nodes.push(text.slice(end));
  return nodes.filter((node) => node !== "");
}

// Of a row of a table.
function cells(line) {
  const parts = line.trim().replace(/^\|/, "").replace(/\|$/, "").split(/(?<!\\)\|/);
  return parts.map((part) => part.trim().replace(/\\\|/g, "|"));
}

function table(lines) {
  const sides = cells(lines[1]).map((rule) =>
    rule.endsWith(":") ? (rule.startsWith(":") ? "center" : "right") : "");
  const row = (line, name) => {
    const found = cells(line);
    return make("tr", sides.map((side, i) =>
      make(name, spans(found[i] ?? ""), { ...(side && { class: side }), ...(name === "th" && { scope: "col" }) })));
  };
  return make("div", [make("table", [
    make("thead", [row(lines[0], "th")]),
    make("tbody", lines.slice(2).map((line) => row(line, "td"))),
  ])], { class: "table" });
}

// Reads the items of one list from lines[at] on; gives the list and the line behind it.
function list(lines, at, depth) {
  const first = lines[at].match(ITEM);
  const ordered = first[3] !== undefined;
  const node = make(ordered ? "ol" : "ul");
  if (ordered && first[3] !== "1") node.setAttribute("start", String(Number(first[3])));
  const indent = first[1].length;
  let blank = false; // a blank line lies between two items or in one
  while (at < lines.length) {
    const item = lines[at].match(ITEM);
    if (!item || (item[3] !== undefined) !== ordered || item[1].length > indent + 3 ||
        item[1].length < indent || RULE.test(lines[at])) break;
    const inside = Math.min(item[0].length, item[1].length + 5);
    const body = [lines[at].slice(item[0].length)];
    for (++at; at < lines.length; ++at) {
      const line = lines[at];
      const depthOfLine = line.length - line.trimStart().length;
      if (line.trim() === "") {
        // It belongs to the item where the next line is indented, or is a further item.
        const next = lines[at + 1] ?? "";
        if (next.trim() === "" || (!next.startsWith(" ".repeat(Math.min(inside, indent + 2))) && !ITEM.test(next))) break;
        blank = true;
        body.push("");
      } else if (depthOfLine >= Math.min(inside, indent + 2)) {
        body.push(line.slice(Math.min(depthOfLine, inside)));
      } else if (ITEM.test(line) || body.at(-1) === "" || FENCE.test(line) || HEADING.test(line) ||
                 QUOTE.test(line) || RULE.test(line)) {
        break;
      } else {
        body.push(line.trim()); // goes on with a paragraph
      }
    }
    const box = body[0].match(/^\[([ xX])\]\s+/);
    if (box) body[0] = (box[1] === " " ? "☐ " : "☑ ") + body[0].slice(box[0].length);
    const children = blocks(body, depth + 1);
    // A paragraph alone in a tight item is its text.
    if (!blank && children[0]?.nodeName === "P") children.splice(0, 1, ...children[0].childNodes);
    node.append(make("li", children));
  }
  return [node, at];
}

function blocks(lines, depth) {
  const nodes = [];
  let paragraph = [];
  const close = () => {
    if (!paragraph.length) return;
    const children = [];
    paragraph.join("\n").split(/(?:(?<! ) {2,}|\\)\n/).forEach((part, i) => {
      if (i) children.push(make("br"));
      children.push(...spans(part));
    });
    nodes.push(make("p", children));
    paragraph = [];
  };
  for (let at = 0; at < lines.length;) {
    const line = lines[at];
    let found;
    if (line.trim() === "") {
      close();
      ++at;
    } else if ((found = line.match(FENCE))) {
      close();
      const code = [];
      const end = new RegExp(`^ {0,3}${found[1][0]}{${Math.min(found[1].length, 99)},}\\s*$`);
      for (++at; at < lines.length && !end.test(lines[at]); ++at) code.push(lines[at]);
      ++at;
      const language = found[2].trim().split(" ")[0];
      const attributes = { tabindex: "0", role: "group", "aria-label": language ? `code, ${language}` : "code" };
      nodes.push(make("pre", [make("code", [code.join("\n")])], attributes));
    } else if ((found = line.match(HEADING))) {
      close();
      // The page has the first two levels.
      nodes.push(make(`h${Math.min(found[1].length + 2, 6)}`, spans(found[2].trimEnd().replace(/(?<!#)#{1,99}$/, "").trimEnd())));
      ++at;
    } else if (RULE.test(line)) {
      close();
      nodes.push(make("hr"));
      ++at;
    } else if (depth < MAX_DEPTH && QUOTE.test(line)) {
      close();
      const quoted = [];
      for (; at < lines.length && QUOTE.test(lines[at]); ++at) quoted.push(lines[at].replace(QUOTE, ""));
      nodes.push(make("blockquote", blocks(quoted, depth + 1)));
    } else if (depth < MAX_DEPTH && ITEM.test(line) && (!paragraph.length || !/^ *\d/.test(line) || /^ *1[.)]/.test(line))) {
      close();
      const [node, next] = list(lines, at, depth);
      nodes.push(node);
      at = next;
    } else if (line.includes("|") && lines[at + 1]?.includes("|") && TABLE_RULE.test(lines[at + 1].replace(/\s/g, ""))) {
      close();
      const rows = [];
      for (; at < lines.length && lines[at].includes("|"); ++at) rows.push(lines[at]);
      nodes.push(table(rows));
    } else {
      paragraph.push(line.trimStart());
      ++at;
    }
  }
  close();
  return nodes;
}

// Nodes, of which none is the root.
export function markdown(text) {
  return blocks(text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n"), 0);
}
