//! Charts: axes with ticks a person would choose, marks on them, and SVG that takes its colours
//! from the page.
//!
//! plotters writes fixed colours and pixel sizes. Here it is given signal colours that stand for
//! roles (text, grid, series 1, …), and its output is rewritten so that each becomes a CSS variable:
//! one drawing then serves light, dark and paper. Each chart is drawn twice, for a wide and for a
//! narrow page, so that its text stays legible on a phone.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, KeyPointWeight, Ranged};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::text;

/// Signal colours: `#0101xx` becomes the CSS variable of role `xx`.
const TEXT: RGBColor = RGBColor(1, 1, 1);
const GRID: RGBColor = RGBColor(1, 1, 2);
const AXIS: RGBColor = RGBColor(1, 1, 3);
/// Series `n` is `#0102nn`.
const SERIES: u8 = 2;
/// Series that the page has colours for.
pub(super) const COLOURS: usize = 7;

/// How a chart is drawn for one width of the page, which scales it to 880 or 340 pixels.
#[derive(Debug, Clone, Copy)]
struct Form {
    name: &'static str,
    size: (u32, u32),
    /// Height of letters, in units of the drawing.
    letters: u32,
    /// About how many ticks there is room for, along and up.
    ticks: (usize, usize),
}

const WIDE: Form = Form { name: "wide", size: (1600, 620), letters: 26, ticks: (8, 6) };
const NARROW: Form = Form { name: "narrow", size: (760, 600), letters: 30, ticks: (4, 5) };

/// How values become positions.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    Log,
    /// A share of all, spread so that each further nine takes as much room as the last.
    Percentile,
    /// Rows of equal height, the first at the top.
    Rows,
}

/// What an axis counts, and so how its ticks are chosen and written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Unit {
    /// Things.
    Count,
    /// Bytes, in powers of 1,024.
    Bytes,
    /// Microseconds.
    Micros,
    /// Seconds.
    Seconds,
    /// Events per second.
    Rate,
}

impl Unit {
    /// A tick's label.
    fn label(self, value: f64) -> String {
        match self {
            Self::Count => text::short(value),
            Self::Rate => format!("{}/s", text::short(value)),
            Self::Bytes => text::bytes(value),
            Self::Micros => text::micros(value),
            Self::Seconds if value == 0.0 => "0".to_owned(),
            Self::Seconds => text::micros(value * 1e6),
        }
    }

    /// The step in which ticks are round numbers, at this size.
    fn step(self, high: f64) -> f64 {
        let base: f64 = if self == Self::Bytes { 1024.0 } else { 1000.0 };
        let mut step = 1.0;
        while high / step >= base {
            step *= base;
        }
        step
    }
}

/// One axis.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    caption: String,
    scale: Scale,
    unit: Unit,
    low: f64,
    high: f64,
    labels: Vec<String>,
}

impl Axis {
    /// From zero to at least `high`.
    pub(super) fn linear(caption: &str, unit: Unit, high: f64) -> Self {
        let high = if high.is_finite() && high > 0.0 { high } else { 1.0 };
        Self::new(caption, Scale::Linear, unit, 0.0, high * 1.04)
    }

    /// Powers of ten, from at most `low` to at least `high`; what is not positive counts as 1.
    pub(super) fn log(caption: &str, unit: Unit, low: f64, high: f64) -> Self {
        let low = if low.is_finite() && low > 0.0 { low } else { 1.0 };
        let high = if high.is_finite() { high.max(low * 10.0) } else { low * 10.0 };
        Self::new(caption, Scale::Log, unit, low / 1.15, high * 1.15)
    }

    /// Shares of all, from the median's side to `nines` nines.
    pub(super) fn percentile(caption: &str, nines: u32) -> Self {
        let high = 1.0 - 0.1_f64.powi(nines.clamp(2, 6) as i32);
        Self::new(caption, Scale::Percentile, Unit::Count, 0.0, high)
    }

    /// One row for each label.
    pub(super) fn rows(caption: &str, labels: Vec<String>) -> Self {
        let high = labels.len() as f64;
        Self { labels, ..Self::new(caption, Scale::Rows, Unit::Count, 0.0, high) }
    }

    fn new(caption: &str, scale: Scale, unit: Unit, low: f64, high: f64) -> Self {
        Self { caption: caption.to_owned(), scale, unit, low, high, labels: Vec::new() }
    }

    /// Where a value stands, in the units of the drawing.
    fn position(&self, value: f64) -> f64 {
        let value = if value.is_finite() { value } else { self.low };
        match self.scale {
            Scale::Linear => value.clamp(self.low, self.high),
            Scale::Log => value.clamp(self.low, self.high).log10(),
            Scale::Percentile => -(1.0 - value.clamp(0.0, self.high)).log10(),
            Scale::Rows => self.high - value - 0.5,
        }
    }

    fn range(&self) -> Range<f64> {
        match self.scale {
            Scale::Rows => 0.0..self.high,
            _ => self.position(self.low)..self.position(self.high),
        }
    }

    /// Ticks, about `wanted` of them: positions and labels.
    fn ticks(&self, wanted: usize) -> Vec<(f64, String)> {
        let values = match self.scale {
            Scale::Linear => linear_ticks(self.high, self.unit.step(self.high), wanted),
            Scale::Log => log_ticks(self.low, self.high, wanted),
            Scale::Percentile => {
                let shares = [0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999_999];
                shares.into_iter().filter(|share| *share <= self.high + 1e-9).collect()
            }
            Scale::Rows => (0..self.labels.len()).map(|row| row as f64).collect(),
        };
        let label = |value: f64| match self.scale {
            Scale::Rows => self.labels[value as usize].clone(),
            Scale::Percentile => format!("{} %", text::trimmed(value * 100.0, 4)),
            _ => self.unit.label(value),
        };
        values.into_iter().map(|value| (self.position(value), label(value))).collect()
    }
}

/// An axis's range with its ticks, as plotters wants it.
struct Placed {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Placed {
    fn new(axis: &Axis, ticks: &[(f64, String)]) -> Self {
        Self { range: axis.range(), ticks: ticks.iter().map(|tick| tick.0).collect() }
    }
}

impl Ranged for Placed {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        limit.0 + (f64::from(limit.1 - limit.0) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight() {
            KeyPointWeight::Bold => self.ticks.clone(),
            KeyPointWeight::Any => Vec::new(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// Multiples of 1, 2 or 5 (times a power of ten) of `step`, up to `high`.
fn linear_ticks(high: f64, step: f64, wanted: usize) -> Vec<f64> {
    let rough = high / step / wanted.max(1) as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let nice = [1.0, 2.0, 5.0, 10.0].into_iter().find(|nice| nice * power >= rough).unwrap_or(10.0);
    let step = nice * power * step;
    (0..=(high / step).floor() as u32).map(|index| f64::from(index) * step).collect()
}

/// Powers of ten, thinned where they are many, with 2 and 5 between where they are few.
fn log_ticks(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let (first, last) = (low.log10().ceil() as i32, high.log10().floor() as i32);
    let powers = (last - first + 1).max(1) as usize;
    if powers * 3 <= wanted {
        let between = |power: i32| [1.0, 2.0, 5.0].map(|factor| factor * 10_f64.powi(power));
        let ticks = (first - 1..=last).flat_map(between);
        return ticks.filter(|value| (low..=high).contains(value)).collect();
    }
    let stride = powers.div_ceil(wanted.max(1));
    (first..=last).step_by(stride).map(|power| 10_f64.powi(power)).collect()
}

/// What is drawn on the axes, in the colour of series `colour`.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    colour: usize,
    shape: Shape,
    points: Vec<(f64, f64)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    /// A closed area.
    Area,
    /// A line.
    Line,
    /// Filled dots.
    Dots,
    /// Hollow dots.
    Rings,
    /// Upright strokes.
    Strokes,
    /// Upright bars with caps, each between two points that follow each other: a spread.
    Spreads,
}

impl Mark {
    /// A line through the points.
    pub(super) fn line(colour: usize, points: Vec<(f64, f64)>) -> Self {
        Self { colour, shape: Shape::Line, points }
    }

    /// A dot at each point.
    pub(super) fn dots(colour: usize, points: Vec<(f64, f64)>) -> Self {
        Self { colour, shape: Shape::Dots, points }
    }

    /// A hollow dot at each point.
    pub(super) fn rings(colour: usize, points: Vec<(f64, f64)>) -> Self {
        Self { colour, shape: Shape::Rings, points }
    }

    /// An upright stroke at each point.
    pub(super) fn strokes(colour: usize, points: Vec<(f64, f64)>) -> Self {
        Self { colour, shape: Shape::Strokes, points }
    }

    /// At each `x` a bar from a lowest to a highest value.
    pub(super) fn spreads(colour: usize, spreads: &[(f64, f64, f64)]) -> Self {
        let ends = spreads.iter().flat_map(|&(x, low, high)| [(x, low), (x, high)]);
        Self { colour, shape: Shape::Spreads, points: ends.collect() }
    }

    /// The area between a lower and an upper line, which have their `x` in common.
    pub(super) fn area(colour: usize, x: &[f64], lower: &[f64], upper: &[f64]) -> Self {
        let up = x.iter().copied().zip(upper.iter().copied());
        let down = x.iter().copied().zip(lower.iter().copied()).rev();
        Self { colour, shape: Shape::Area, points: up.chain(down).collect() }
    }
}

/// A chart, and what it says in words.
#[derive(Debug, Clone)]
pub(super) struct Chart {
    /// Unique on the page; letters and dashes.
    pub(super) id: &'static str,
    /// The title that screen readers say.
    pub(super) title: String,
    /// The description that screen readers say.
    pub(super) description: String,
    /// The axis from left to right.
    pub(super) x: Axis,
    /// The axis from bottom to top.
    pub(super) y: Axis,
    /// What is drawn, the first at the back.
    pub(super) marks: Vec<Mark>,
}

/// What plotters answers when it cannot draw; it cannot fail on a string.
type Drawn = Result<(), Box<dyn std::error::Error>>;

impl Chart {
    /// The SVG for a wide page, and the one for a narrow page.
    pub(super) fn svg(&self) -> (String, String) {
        (self.form(WIDE), self.form(NARROW))
    }

    fn form(&self, mut form: Form) -> String {
        if self.y.scale == Scale::Rows {
            // Rows keep their height however many they are.
            form.size.1 = 160 + 60 * self.y.labels.len() as u32;
        }
        let mut svg = String::new();
        // A chart that cannot be drawn leaves its table, which has all of its figures.
        if self.draw(&mut svg, form).is_err() {
            return String::new();
        }
        self.restyle(&svg, form)
    }

    fn draw(&self, svg: &mut String, form: Form) -> Drawn {
        let (size, letters) = (form.size, form.letters);
        let root = SVGBackend::with_string(svg, size).into_drawing_area();
        // plotters writes sizes divided by 1.24.
        let style = ("sans-serif", f64::from(letters) * 1.24).into_font().color(&TEXT);
        let (x_ticks, y_ticks) = (self.x.ticks(form.ticks.0), self.y.ticks(form.ticks.1));
        let widest = y_ticks.iter().map(|(_, label)| label.chars().count()).max().unwrap_or(1);
        let label_width = 26 + widest as u32 * letters * 11 / 20;
        let mut chart = ChartBuilder::on(&root)
            .margin_top(letters * 2)
            .margin_right(56)
            .set_label_area_size(LabelAreaPosition::Left, label_width)
            .set_label_area_size(LabelAreaPosition::Bottom, letters * 3)
            .build_cartesian_2d(Placed::new(&self.x, &x_ticks), Placed::new(&self.y, &y_ticks))?;
        let mut mesh = chart.configure_mesh();
        if self.y.scale != Scale::Rows {
            mesh.disable_x_mesh();
        }
        mesh.light_line_style(TRANSPARENT)
            .bold_line_style(GRID.stroke_width(2))
            .axis_style(AXIS.stroke_width(2))
            .set_all_tick_mark_size(6)
            .label_style(style.clone())
            .x_label_formatter(&|at| label_at(&x_ticks, *at))
            .y_label_formatter(&|at| label_at(&y_ticks, *at))
            .draw()?;
        for mark in &self.marks {
            let colour = RGBColor(1, SERIES, (mark.colour % COLOURS) as u8);
            let at = |(x, y): &(f64, f64)| (self.x.position(*x), self.y.position(*y));
            let points: Vec<(f64, f64)> = mark.points.iter().map(at).collect();
            match mark.shape {
                Shape::Area => {
                    chart.draw_series([Polygon::new(points, colour.filled())])?;
                }
                Shape::Line => {
                    chart.draw_series([PathElement::new(points, colour.stroke_width(5))])?;
                }
                Shape::Dots => {
                    let dot = |point| Circle::new(point, 9, colour.filled());
                    chart.draw_series(points.into_iter().map(dot))?;
                }
                Shape::Rings => {
                    let ring = |point| Circle::new(point, 16, colour.stroke_width(4));
                    chart.draw_series(points.into_iter().map(ring))?;
                }
                Shape::Spreads => {
                    let cap = (self.x.range().end - self.x.range().start) * 0.006;
                    let path = |points| PathElement::new(points, colour.stroke_width(3));
                    for ends in points.chunks_exact(2) {
                        let [(x, low), (_, high)] = [ends[0], ends[1]];
                        let lines = [
                            vec![(x, low), (x, high)],
                            vec![(x - cap, low), (x + cap, low)],
                            vec![(x - cap, high), (x + cap, high)],
                        ];
                        chart.draw_series(lines.map(path))?;
                    }
                }
                Shape::Strokes => {
                    let stroke = |(x, y)| {
                        PathElement::new(vec![(x, y - 0.34), (x, y + 0.34)], colour.stroke_width(5))
                    };
                    chart.draw_series(points.into_iter().map(stroke))?;
                }
            }
        }
        root.draw_text(&self.y.caption, &style, (4, 4))?;
        let at_the_end = style.pos(Pos::new(HPos::Right, VPos::Bottom));
        root.draw_text(&self.x.caption, &at_the_end, (size.0 as i32 - 56, size.1 as i32 - 4))?;
        root.present()?;
        Ok(())
    }

    /// Rewrites the drawing for the page: CSS variables for colours, the page's font, a size that
    /// follows the page, a title and a description.
    fn restyle(&self, svg: &str, form: Form) -> String {
        let (title, description) = (text::escape(&self.title), text::escape(&self.description));
        let Form { name, size: (width, height), letters, .. } = form;
        let id = format!("{}-{name}", self.id);
        let open = format!(
            "<svg class=\"{name}\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
             aria-labelledby=\"{id}-t {id}-d\" style=\"font-size:{letters}px\">\
             <title id=\"{id}-t\">{title}</title><desc id=\"{id}-d\">{description}</desc>",
        );
        let body = svg.split_once('>').map_or("", |(_, body)| body);
        let mut out = open;
        let mut rest = body.trim_start();
        while let Some(at) = rest.find("#010") {
            let (before, from) = rest.split_at(at);
            // `fill="#0102NN"`: the attribute becomes a class, which the page's CSS colours.
            let attribute = if before.ends_with("fill=\"") { "fill=\"" } else { "stroke=\"" };
            out.push_str(before.strip_suffix(attribute).unwrap_or(before));
            let kind = if attribute.starts_with('f') { "f" } else { "s" };
            let role = match &from[1..7] {
                "010101" => "text".to_owned(),
                "010102" => "grid".to_owned(),
                "010103" => "axis".to_owned(),
                series => series[4..].trim_start_matches('0').parse().unwrap_or(0_u32).to_string(),
            };
            out.extend(["class=\"", kind, "-", &role]);
            rest = &from[7..];
        }
        out.push_str(rest);
        out.replace(" opacity=\"1\"", "")
            .replace(" font-family=\"sans-serif\"", "")
            .replace(&format!(" font-size=\"{letters}\""), "")
            .replace('\n', "")
    }
}

/// The label of the tick at a position.
fn label_at(ticks: &[(f64, String)], at: f64) -> String {
    ticks
        .iter()
        .find(|(position, _)| (position - at).abs() < 1e-9)
        .map_or_else(String::new, |(_, label)| label.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(linear_ticks(15_600.0, 1000.0, 6), [0.0, 5000.0, 10_000.0, 15_000.0]);
        assert_eq!(
            linear_ticks(3.0 * 1_048_576.0, 1_048_576.0, 4).last(),
            Some(&(3.0 * 1_048_576.0))
        );
        assert_eq!(log_ticks(0.9, 1200.0, 8), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(log_ticks(9.0, 60.0, 8), [10.0, 20.0, 50.0]);
    }

    #[test]
    fn axes_bear_any_number() {
        for value in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300] {
            let linear = Axis::linear("", Unit::Bytes, value);
            let log = Axis::log("", Unit::Micros, value, value);
            for axis in [linear, log, Axis::percentile("", 4)] {
                assert!(axis.position(value).is_finite(), "{axis:?} {value}");
                assert!(axis.ticks(6).len() < 60, "{axis:?}");
            }
        }
    }

    #[test]
    fn drawing_takes_its_colours_and_font_from_the_page() {
        let chart = Chart {
            id: "test",
            title: "<a> & \"b\"".to_owned(),
            description: "</svg><script>".to_owned(),
            x: Axis::linear("x", Unit::Count, 10.0),
            y: Axis::linear("y", Unit::Bytes, 10.0),
            marks: vec![Mark::line(3, vec![(0.0, 0.0), (10.0, 10.0)])],
        };
        let (wide, narrow) = chart.svg();
        for svg in [wide, narrow] {
            assert!(!svg.contains('#') && !svg.contains("font-family"), "{svg}");
            assert!(svg.contains("class=\"s-3\"") && svg.contains("class=\"f-text\""), "{svg}");
            assert!(svg.contains("&lt;/svg&gt;&lt;script&gt;") && svg.ends_with("</svg>"), "{svg}");
        }
    }
}
