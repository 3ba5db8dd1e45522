// The trace file: Chrome's JSON, which Perfetto (ui.perfetto.dev) and chrome://tracing open. One process per
// rank, one thread row per stream, "X" events in microseconds with three decimals, so nanoseconds read back
// exactly.
//
//   {"otherData":{"tessera_trace":"1","origin_ns":"123","dropped":"0",...metadata},
//    "displayTimeUnit":"ns",
//    "traceEvents":[
//   {"ph":"M","pid":0,"name":"process_name","args":{"name":"rank 0"}},
//   {"ph":"M","pid":0,"tid":1,"name":"thread_name","args":{"name":"compute"}},
//   {"ph":"X","pid":0,"tid":1,"name":"attention","cat":"forward","ts":1.500,"dur":20.000,
//    "args":{"stage":0,"microbatch":3,"flops":1000,"cpu_us":19.000}},
//   ...]}
//
// Rows are named before their first span. ts counts from origin_ns. Arguments that say nothing are left out.
#pragma once
#include <filesystem>
#include <string_view>

#include "trace/trace.h"

namespace tessera::trace {

// Writes beside the target and renames: readers see the old or the new file, never half. The file is never
// whole in memory. The trace is written in canonical order. Throws Error{io}; Error{config} on spans that end
// before they start, ids outside their tables, or a duration of the trace over 50 days.
void write_chrome(const std::filesystem::path& path, const Trace& trace);

// Reads what write_chrome wrote: read_chrome(path) == canonical(trace). Throws Error{io} on a file that is no
// JSON, is cut off, or is not a trace of Tessera; Error{unsupported} on a newer version. The place is the
// file and the event.
[[nodiscard]] Trace read_chrome(const std::filesystem::path& path);

// Of a text in memory; `source` stands for the file in messages.
[[nodiscard]] Trace parse_chrome(std::string_view text, std::string_view source);

}  // namespace tessera::trace
