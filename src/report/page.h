// The page that a run ends with, section by section. Inside of this room.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "report/run_summary.h"
#include "report/terminal.h"

namespace tessera::report {

struct Fact {  // "MFU  41.2%  model FLOPs / (time x peak)"
  std::string label, value, meaning;
  Tone tone = Tone::faint;  // of the meaning
};

class Page {
 public:
  explicit Page(const Style& style);
  [[nodiscard]] const Style& inner() const { return inner_; }  // what fits inside of a section
  void title(std::string_view text);
  void section(std::string_view text);
  void gap();
  void block(std::string_view lines);       // rendered for inner()
  void description(std::string_view text);  // "plan  8 ranks": wraps behind the first word
  void paragraph(std::string_view text, Tone tone);
  void item(std::string_view mark, std::string_view text, Tone tone);  // wrapped behind the mark
  void facts(const std::vector<Fact>& facts);  // aligned; meanings wrap in their own column
  void quote(std::string_view prompt, std::string_view continuation);  // foreign text
  [[nodiscard]] std::string text() const { return text_; }

 private:
  void line(std::string_view text);  // indented
  Style style_, inner_;
  std::string text_;
};

void put_memory(Page& page, const RunView& view);

}  // namespace tessera::report
