#include "place/picture.h"

#include <fmt/format.h>

#include <algorithm>

#include "place/index.h"

namespace tessera::place {
namespace {

constexpr double kWidth = 420.0, kBand = 64.0, kLeft = 70.0, kGap = 40.0, kTop = 64.0;
constexpr std::int32_t kMostBands = 16;

struct Panel {
  double x = 0.0, most = 1.0;
  const char* fill = "";
  std::int32_t gpus_per_node = 0;
};

std::string bars(const std::vector<double>& loads, const Panel& panel, double bottom) {
  std::string text;
  const double step = kWidth / static_cast<double>(loads.size());
  const double height = kBand - 16.0;
  for (std::int32_t g = 0; g < count(loads); ++g) {
    const double tall = at(loads, g) / panel.most * height;
    text += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"{:.1f}\" fill=\"{}\"/>\n",
                        panel.x + g * step, bottom - tall, std::max(step - (step > 3.0 ? 1.0 : 0.0), 0.3),
                        tall, panel.fill);
    if (panel.gpus_per_node > 0 && g > 0 && g % panel.gpus_per_node == 0) {
      text +=
          fmt::format("<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\" class=\"node\"/>\n",
                      panel.x + g * step - 0.5, bottom - height, bottom + 4.0);
    }
  }
  const double mean = bottom - height / panel.most;
  text += fmt::format("<line x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\" class=\"mean\"/>\n",
                      panel.x, panel.x + kWidth, mean, mean);
  text +=
      fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"small\" text-anchor=\"end\">max {:.2f}</text>\n",
                  panel.x + kWidth, bottom - height - 3.0, largest(loads));
  return text;
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    out += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : std::string(1, c);
  }
  return out;
}

}  // namespace

std::string to_svg(const LoadPicture& picture) {
  const std::int32_t layers = count(picture.layers), bands = std::min(layers, kMostBands);
  const double wide = kLeft + 2.0 * kWidth + kGap + 20.0, tall = kTop + bands * kBand + 30.0;
  double most = 1.0;
  for (const auto* side : {&picture.before, &picture.after}) {
    for (const std::vector<double>& loads : *side) most = std::max(most, largest(loads));
  }
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
      "height=\"{1:.0f}\" role=\"img\">\n<title>Load of every GPU: {2} and {3}</title>\n"
      "<style>text{{font:13px sans-serif;fill:#222}}.small{{font-size:10px;fill:#555}}"
      ".mean{{stroke:#222;stroke-width:1;stroke-dasharray:4 3}}.node{{stroke:#999;stroke-width:1}}</style>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
      wide, tall, escaped(picture.before_name), escaped(picture.after_name));
  Panel left{.x = kLeft, .most = most, .fill = "#d1793b", .gpus_per_node = picture.gpus_per_node};
  Panel right = left;
  right.x = kLeft + kWidth + kGap;
  right.fill = "#2f7f79";
  svg += fmt::format("<text x=\"{:.0f}\" y=\"20\">Load of every GPU, 1 = the mean (dashed)</text>\n", kLeft);
  svg += fmt::format("<text x=\"{:.0f}\" y=\"42\" font-weight=\"bold\">{}</text>\n", left.x,
                     escaped(picture.before_name));
  svg += fmt::format("<text x=\"{:.0f}\" y=\"42\" font-weight=\"bold\">{}</text>\n", right.x,
                     escaped(picture.after_name));
  for (std::int32_t b = 0; b < bands; ++b) {
    const std::int32_t l = layers == bands ? b : b * layers / bands;
    const double bottom = kTop + (b + 1) * kBand - 8.0;
    svg += fmt::format("<text x=\"{:.0f}\" y=\"{:.1f}\" text-anchor=\"end\">layer {}</text>\n", kLeft - 8.0,
                       bottom, at(picture.layers, l));
    svg += bars(at(picture.before, l), left, bottom) + bars(at(picture.after, l), right, bottom);
  }
  const std::string nodes = picture.gpus_per_node > 0 ? "; upright lines part the nodes" : "";
  const std::string shown = layers == bands ? "" : fmt::format("; {} of {} layers", bands, layers);
  svg += fmt::format("<text x=\"{:.0f}\" y=\"{:.0f}\" class=\"small\">one bar a GPU{}{}</text>\n</svg>\n",
                     kLeft, tall - 10.0, nodes, shown);
  return svg;
}

}  // namespace tessera::place
