"""Style sheet of report pages: one column, light or dark as the reader's system asks."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #ffffff; --ink: #1c1f23; --soft: #667079; --line: #e3e5e8;
  --bar: #c9dcf5; --accent: #1f5fbf;
  --s0: #1f6fd0; --s1: #d9601a; --s2: #16875d; --s3: #8247c9; --s4: #c72f6d; --s5: #5d6b78;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1c2024; --ink: #e8eaec; --soft: #98a2ab; --line: #30363c;
    --bar: #27456b; --accent: #7db3f5;
    --s0: #6aa9f2; --s1: #f09a5f; --s2: #52c79a; --s3: #b792ee; --s4: #f080ac; --s5: #a3b0bc;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 40px 24px 64px; max-width: 1200px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1 {
  margin: 0; font-size: 30px; line-height: 1.2; letter-spacing: -.015em;
  overflow-wrap: anywhere;
}
h2 { margin: 48px 0 4px; font-size: 20px; letter-spacing: -.01em; }
h3 { margin: 0; font-size: 15px; }
p { margin: 0 0 14px; max-width: 76ch; color: var(--soft); }
p.lead { margin: 6px 0 20px; font-size: 17px; }
ul { list-style: none; margin: 0; padding: 0; }
dl { margin: 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }

.facts { display: flex; flex-wrap: wrap; gap: 12px 36px; }
.facts dt { color: var(--soft); font-size: 13px; }
.facts dd { margin: 0; overflow-wrap: anywhere; }

.stages {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px;
  margin-top: 12px;
}
.stages li { padding: 14px 16px; display: flex; flex-direction: column; }
.stages p { margin: 0; font-size: 13px; }
.stages .big {
  margin: 10px 0 6px; font-size: 32px; line-height: 1.1; font-weight: 600;
  letter-spacing: -.02em;
}
.stages .big small { font-size: 13px; font-weight: 400; letter-spacing: 0; color: var(--soft); }
.stages .none { color: var(--soft); font-size: 18px; font-weight: 400; line-height: 35px; }
.stages dl {
  display: grid; grid-template-columns: 1fr auto; gap: 1px 10px; font-size: 13px;
  margin-bottom: 8px;
}
.stages dt { color: var(--soft); }
.stages dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
.stages .time { margin-top: auto; padding-top: 8px; border-top: 1px solid var(--line); }

.legend {
  display: flex; flex-wrap: wrap; align-items: center; gap: 6px 18px; margin: 0 0 14px;
  font-size: 13px; overflow-wrap: anywhere;
}
.legend i {
  display: inline-block; width: 13px; height: 13px; margin-right: 7px; border-radius: 3px;
  vertical-align: -2px;
}
.legend img {
  width: 40px; height: 40px; margin-right: 7px; border-radius: 50%; vertical-align: middle;
}
.legend .heat i {
  width: 84px;
  background: linear-gradient(90deg, #30123b, #4686fb, #1ae4b6, #a4fc3c, #fb7e21, #7a0403);
}

.scroll { overflow-x: auto; padding: 14px; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-size: 13px; font-weight: 600; vertical-align: top; }
th small { display: block; color: var(--soft); font-weight: 400; }
td, th { padding: 5px 6px; }
.sheet { min-width: 820px; table-layout: fixed; }
.sheet td { vertical-align: top; }
.sheet th { overflow-wrap: anywhere; }
.sheet img { display: block; width: 100%; height: auto; border-radius: 5px; }
.sheet .name td {
  padding: 12px 6px 0; color: var(--soft); font-size: 13px; overflow-wrap: anywhere;
}
.sheet .name b { color: var(--ink); font-weight: 600; }
div.absent {
  display: flex; align-items: center; justify-content: center; min-height: 90px; border-radius: 5px;
  border: 1px dashed var(--line); color: var(--soft); font-size: 13px;
}

.bars { min-width: 620px; table-layout: fixed; font-variant-numeric: tabular-nums; }
.bars.few { min-width: 0; }
.bars tr + tr td, .bars tr + tr th { border-top: 1px solid var(--line); }
.bars tbody th { font-weight: 400; overflow-wrap: anywhere; font-size: 14px; }
.bars .total, .bars .total th { font-weight: 600; }
.bars td div { display: flex; align-items: center; gap: 10px; }
.bars td span { width: 3.2em; text-align: right; }
.bars td i {
  flex: 1; height: 9px; border-radius: 2px;
  background: linear-gradient(var(--s0), var(--s0)) no-repeat, var(--line);
  background-size: var(--w) 100%, auto;
}
.bars .absent { color: var(--soft); font-weight: 400; }

.charts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
  gap: 14px; margin-top: 12px;
}
.charts figure { margin: 0; padding: 14px 16px 10px; }
.charts svg { display: block; width: 100%; height: auto; }
.key {
  display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 2px 0 8px; font-size: 13px;
  color: var(--soft);
}
.charts svg + p { margin: 12px 0 4px; font-size: 13px; }
.key b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.key i {
  display: inline-block; width: 18px; margin-right: 6px; border-top: 2.5px solid var(--c);
  vertical-align: 4px;
}
.key i.dashed { border-top-style: dotted; }
.s0 { --c: var(--s0); } .s1 { --c: var(--s1); } .s2 { --c: var(--s2); }
.s3 { --c: var(--s3); } .s4 { --c: var(--s4); } .s5 { --c: var(--s5); }
svg .line { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; }
svg .dashed { stroke-dasharray: 5 4; }
svg circle, svg rect { fill: var(--c); }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg text {
  fill: var(--soft); font-size: 12px; text-anchor: middle; font-variant-numeric: tabular-nums;
}
svg .end { text-anchor: end; }

.failures { min-width: 620px; }
.failures td, .failures th { font-size: 14px; vertical-align: top; }
.failures td:last-child { overflow-wrap: anywhere; }
.failures tr + tr td { border-top: 1px solid var(--line); }
.failures .count { text-align: right; font-variant-numeric: tabular-nums; }
.thumbs {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 270px), 1fr));
  gap: 14px; margin: 8px 0 22px;
}
.thumbs figure { margin: 0; padding: 8px; }
.thumbs .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; align-items: start; }
.thumbs.wide { grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)); }
.thumbs.wide .pair { grid-template-columns: 1fr 1fr 1fr; }
.thumbs img { display: block; width: 100%; height: auto; border-radius: 5px; }
.thumbs figcaption {
  margin-top: 6px; font-size: 13px; line-height: 1.4; color: var(--soft); overflow-wrap: anywhere;
}
.thumbs b { display: block; color: var(--ink); font-weight: 600; }
h3.group { margin-top: 18px; overflow-wrap: anywhere; }
h3.group small { color: var(--soft); font-weight: 400; }

details { margin-top: 40px; padding: 12px 16px; }
summary { cursor: pointer; font-weight: 600; }
pre {
  overflow-x: auto; font: 13px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
.empty { padding: 24px 0; text-align: center; }
footer { margin-top: 32px; color: var(--soft); font-size: 13px; }
@media (max-width: 640px) {
  body { padding: 24px 14px 40px; }
  h1 { font-size: 24px; }
  .scroll { padding: 8px; }
}
@media print { body { max-width: none; } .card { break-inside: avoid; } }
"""
