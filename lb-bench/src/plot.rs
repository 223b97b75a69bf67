//! Plots of figures, as SVG: bars side by side, and lines over a size.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Pixels.
const SIZE: (u32, u32) = (960, 480);
const FONT: &str = "sans-serif";
/// For the names, in pixels.
const LEGEND: u32 = 170;
const WIDE_LEGEND: u32 = 330;
/// Told apart by those who do not see all colours, too (Okabe and Ito), two greys and black.
const COLOURS: [RGBColor; 10] = [
    RGBColor(120, 120, 120),
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(240, 228, 66),
    RGBColor(230, 159, 0),
    RGBColor(190, 190, 190),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(0, 0, 0),
];

/// A plot's words.
#[derive(Clone, Copy, Debug)]
pub struct Words<'w> {
    pub title: &'w str,
    /// What the horizontal axis counts; bars have none.
    pub x: &'w str,
    /// What the vertical axis counts, with its unit.
    pub y: &'w str,
}

/// Figures of one name.
#[derive(Clone, Debug)]
pub struct Bars {
    pub name: String,
    /// One for each group; `None`: there is none, and no bar.
    pub values: Vec<Option<f64>>,
}

/// Figures of one name over sizes.
#[derive(Clone, Debug)]
pub struct Line {
    pub name: String,
    /// Size and figure; sizes are more than 0.
    pub points: Vec<(f64, f64)>,
}

fn colour(at: usize) -> RGBColor {
    COLOURS[at % COLOURS.len()]
}

/// Draws a group of bars for each of `groups`, with one bar of each series.
///
/// # Errors
/// When there is nothing to draw, or the file cannot be written.
pub fn bars(path: &Path, words: Words<'_>, groups: &[&str], series: &[Bars]) -> Result<()> {
    let top = highest(series.iter().flat_map(|one| one.values.iter().flatten()))?;
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(words.title, (FONT, 18))
            .margin(12)
            .margin_right(LEGEND)
            .x_label_area_size(28)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..groups.len() as f64, 0.0..top * 1.08)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .label_style((FONT, 14))
            .x_labels(0)
            .y_desc(words.y)
            .y_label_formatter(&|value| short(*value))
            .draw()?;
        let width = 0.84 / series.len() as f64;
        let mut shown = 0;
        for (at, one) in series.iter().enumerate() {
            let colour = colour(at);
            let left = |group: usize| group as f64 + 0.08 + at as f64 * width;
            let shapes = one.values.iter().take(groups.len()).enumerate().filter_map(|(group, value)| {
                let corners = [(left(group), 0.0), (left(group) + width * 0.92, (*value)?)];
                Some(Rectangle::new(corners, colour.filled()))
            });
            chart.draw_series(shapes)?;
            if one.values.iter().any(Option::is_some) {
                legend(&root, LEGEND, shown, &one.name, colour)?;
                shown += 1;
            }
        }
        let style = (FONT, 14).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Top));
        for (group, name) in groups.iter().enumerate() {
            let (x, y) = chart.backend_coord(&(group as f64 + 0.5, 0.0));
            root.draw(&Text::new((*name).to_owned(), (x, y + 8), style.clone()))?;
        }
        root.present()?;
        Ok(())
    };
    draw().map_err(|error| anyhow!("{error}")).with_context(|| format!("cannot draw {}", path.display()))
}

/// Draws figures over sizes, each ten times the one before at the same distance.
///
/// # Errors
/// When there is nothing to draw, or the file cannot be written.
pub fn lines(path: &Path, words: Words<'_>, series: &[Line]) -> Result<()> {
    let top = highest(series.iter().flat_map(|one| one.points.iter().map(|(_, figure)| figure)))?;
    let sizes = || series.iter().flat_map(|one| one.points.iter().map(|(size, _)| *size));
    let (least, most) = (sizes().fold(f64::INFINITY, f64::min), sizes().fold(0.0, f64::max));
    if !(least > 0.0 && most.is_finite()) {
        bail!("cannot draw {}: a size is not more than 0", path.display());
    }
    // Only one size: a line of no length still has a place.
    let (from, to) = if least < most { (least, most) } else { (least / 2.0, most * 2.0) };
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(words.title, (FONT, 18))
            .margin(12)
            .margin_right(WIDE_LEGEND)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d((from..to).log_scale(), 0.0..top * 1.08)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .label_style((FONT, 14))
            .x_desc(words.x)
            .y_desc(words.y)
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| short(*value))
            .draw()?;
        for (at, one) in (0..).zip(series) {
            let colour = colour(at as usize + 1);
            chart.draw_series(LineSeries::new(one.points.iter().copied(), colour.stroke_width(2)))?;
            chart.draw_series(one.points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
            legend(&root, WIDE_LEGEND, at, &one.name, colour)?;
        }
        root.present()?;
        Ok(())
    };
    draw().map_err(|error| anyhow!("{error}")).with_context(|| format!("cannot draw {}", path.display()))
}

/// Names stand at the right, one below the other, and never over the figures.
fn legend(
    root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    room: u32,
    at: i32,
    name: &str,
    colour: RGBColor,
) -> Result<(), Box<dyn std::error::Error>> {
    let (width, _) = root.dim_in_pixel();
    let (x, y) = (i32::try_from(width - room)? + 14, 50 + at * 24);
    root.draw(&Rectangle::new([(x, y), (x + 12, y + 12)], colour.filled()))?;
    root.draw(&Text::new(name.to_owned(), (x + 18, y), (FONT, 15).into_font().color(&BLACK)))?;
    Ok(())
}

/// Where plots go: beside the figures, and where they are asked for.
pub fn directories<'p>(json: Option<&'p Path>, plots: Option<&'p Path>) -> impl Iterator<Item = &'p Path> {
    json.and_then(Path::parent).into_iter().chain(plots)
}

/// The highest figure.
fn highest<'v>(values: impl Iterator<Item = &'v f64>) -> Result<f64> {
    let top = values.copied().filter(|value| value.is_finite()).fold(0.0, f64::max);
    if top <= 0.0 {
        bail!("there is no figure above 0 to draw");
    }
    Ok(top)
}

/// A number as it fits on an axis.
fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        size if size >= 1e6 => (value / 1e6, " M"),
        size if size >= 1e3 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let text = format!("{scaled:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: Words<'_> = Words { title: "How it grows", x: "flows", y: "ms" };

    fn drawn(name: &str, draw: impl FnOnce(&Path) -> Result<()>) -> Result<String> {
        let path = std::env::temp_dir().join(format!("{name}-{}.svg", std::process::id()));
        let outcome = draw(&path).and_then(|()| Ok(std::fs::read_to_string(&path)?));
        let _ = std::fs::remove_file(&path);
        outcome
    }

    fn bar(name: &str, values: [Option<f64>; 2]) -> Bars {
        Bars { name: name.to_owned(), values: values.into() }
    }

    #[test]
    fn every_series_and_group_is_there() {
        let series = [
            bar("first gateway", [Some(1.0), Some(2.0)]),
            bar("second one", [Some(0.5), None]),
            bar("nobody", [None, None]),
        ];
        let svg = drawn("bars", |path| bars(path, WORDS, &["packets", "mail"], &series)).unwrap();
        for text in ["first gateway", "second one", "packets", "mail", "How it grows"] {
            assert!(svg.contains(text), "{text} is missing");
        }
        assert!(!svg.contains("nobody"), "who has no figure is not named");
        // Three bars and two in the legend: what has no figure has no bar.
        let filled = |colour: usize| {
            let RGBColor(r, g, b) = COLOURS[colour];
            svg.lines()
                .filter(|line| line.starts_with("<rect") && line.contains(&format!("#{r:02X}{g:02X}{b:02X}")))
                .count()
        };
        assert_eq!((filled(0), filled(1)), (3, 2), "{svg}");
    }

    #[test]
    fn lines_have_a_point_for_each_size() {
        let points = vec![(1.0, 2.0), (100.0, 3.0), (10_000.0, 28.0)];
        let series = [Line { name: "reload".to_owned(), points }];
        let svg = drawn("lines", |path| lines(path, WORDS, &series)).unwrap();
        assert!(svg.contains("reload") && svg.contains("flows"));
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("<polyline"));
    }

    #[test]
    fn nothing_is_no_plot() {
        drawn("none", |path| bars(path, WORDS, &["packets"], &[bar("one", [None, None])])).unwrap_err();
        let zero = [Line { name: "reload".to_owned(), points: vec![(0.0, 1.0)] }];
        drawn("zero", |path| lines(path, WORDS, &zero)).unwrap_err();
    }

    #[test]
    fn numbers_fit_on_an_axis() {
        assert_eq!(["0", "0.5", "10 k", "1.05 M"].map(str::to_owned), [0.0, 0.5, 1e4, 1.05e6].map(short));
    }
}
