"""The looks of the report: those of the timeline page, and what a report has besides; and its only script.

The page is whole without the script: all that this does is to offer the data as a file.
"""

from vmbus_emu.client import timeline_style

STYLE = timeline_style.STYLE + """
:root { --other: #7a4e9c; }
@media (prefers-color-scheme: dark) { :root { --other: #c79fe6; } }
@media print { :root { --other: #7a4e9c; } details { display: none; } tbody { break-inside: avoid; }
  .soft { break-after: avoid; } .plots { display: block !important; }
  .plots figure { display: inline-block; width: 46%; margin-right: 3%; vertical-align: top; }
  table { font-size: 11.5px !important; } td.n small { font-size: 11px !important; } body { font-size: 13px; }
  th, td { padding: 3px 9px 3px 0 !important; position: static !important; } .lead { font-size: 16px !important; } }
.lead { font-size: 16px; } }
.lead { font-size: clamp(16.5px, 2.2vw, 20px); line-height: 1.5; margin: 14px 0; max-width: 66ch; }
.verdict ul { margin: 4px 0 0; padding-left: 1.3em; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 26px 40px;
  margin: 10px 0; }
.plots figure { margin: 0; min-width: 0; }
.plots svg { max-width: 460px; margin-top: 6px; }
.plots svg * { stroke-linejoin: round; }
.plots .over { stroke-width: 3px; }
.plots b { color: var(--ink); }
details { margin: 10px 0; } summary { cursor: pointer; font-size: 14px; }
.wide th[scope=row] { position: sticky; left: 0; background: var(--ground); font-weight: normal; }
th[scope=rowgroup] { font-weight: bold; padding-top: 16px; border-bottom-color: var(--soft); }
th[scope=rowgroup] span { position: sticky; left: 0; }
td.n small { font-size: 13px; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--panel); padding: 10px 14px; font-size: 13.5px;
  border: 1px solid var(--line); }
.told { display: grid; grid-template-columns: minmax(8em, max-content) 1fr; gap: 4px 18px; font-size: 14px;
  margin: 8px 0; }
.told dt { color: var(--soft); } .told dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 520px) { .told { display: block; } .told dd { margin: 0 0 8px; } main { padding: 18px 14px 40px; } }
"""

SCRIPT = """
var link = document.getElementById("download");
link.href = URL.createObjectURL(new Blob([document.getElementById("run").textContent], {type: "application/json"}));
link.download = "run.json";
document.getElementById("offer").hidden = false;
"""
