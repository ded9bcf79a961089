//! Metrics in the text format of Prometheus, as far as a person at a terminal needs them.

/// What `/metrics` said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug, PartialEq)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Sample {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

impl Metrics {
    /// Reads a page; lines that are none of ours are passed over. Of several models, `model` only.
    pub fn read(text: &str, model: Option<&str>) -> Self {
        let samples = text.lines().filter(|l| !l.starts_with('#')).filter_map(sample);
        let ours = |s: &Sample| model.is_none_or(|m| s.label("model_name").is_none_or(|name| name == m));
        Self { samples: samples.filter(ours).collect() }
    }

    /// A value, summed over its labels; `None` if there is none.
    pub fn value(&self, name: &str) -> Option<f64> {
        let values: Vec<f64> = self.samples.iter().filter(|s| s.name == name).map(|s| s.value).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// A quantile of a histogram in seconds, of those with this label if one is given: linear within a bucket, as
    /// Prometheus has it. `None` if nothing was counted.
    pub fn quantile(&self, name: &str, label: Option<(&str, &str)>, q: f64) -> Option<f64> {
        let bucket = format!("{name}_bucket");
        let ours = |s: &&Sample| s.name == bucket && label.is_none_or(|(n, v)| s.label(n) == Some(v));
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for sample in self.samples.iter().filter(ours) {
            let bound = sample.label("le")?;
            buckets.push((if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? }, sample.value));
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let wanted = q * buckets.last().filter(|(_, count)| *count > 0.0)?.1;
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in buckets {
            if count >= wanted && count > below {
                // Above the last bound nothing is known.
                let share = (wanted - below) / (count - below);
                return Some(if bound.is_finite() { low + (bound - low) * share } else { low });
            }
            (low, below) = (bound, count);
        }
        None
    }
}

/// `name{label="value",…} 1.5`
fn sample(line: &str) -> Option<Sample> {
    let (series, value) = match line.split_once('}') {
        Some((series, value)) => (series, value),
        None => line.split_once(' ')?,
    };
    let value = value.split_whitespace().next()?.parse().ok()?;
    let (name, inside) = series.split_once('{').unwrap_or((series, ""));
    let label = |text: &str| {
        let (name, value) = text.split_once('=')?;
        Some((name.trim().to_string(), value.trim().trim_matches('"').to_string()))
    };
    Some(Sample { name: name.into(), labels: inside.split(',').filter_map(label).collect(), value })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# TYPE t histogram
t_bucket{le=\"0.1\",model_name=\"m\"} 50
t_bucket{le=\"+Inf\",model_name=\"m\"} 100
t_bucket{le=\"1.0\",model_name=\"m\"} 90
t_bucket{le=\"0.1\",model_name=\"other\"} 1000
t_bucket{le=\"+Inf\",model_name=\"other\"} 1000
c_total{model_name=\"m\",kind=\"a\"} 2
c_total{model_name=\"m\",kind=\"b\"} 3.5
alone 7
nonsense
half{
n NaN x
# EOF
";

    #[test]
    fn values_and_quantiles() {
        let metrics = Metrics::read(PAGE, Some("m"));
        assert_eq!(
            (metrics.value("c_total"), metrics.value("alone"), metrics.value("none")),
            (Some(5.5), Some(7.0), None)
        );
        let at = |q| metrics.quantile("t", None, q).unwrap();
        assert!((at(0.25) - 0.05).abs() < 1e-9 && (at(0.5) - 0.1).abs() < 1e-9, "{} {}", at(0.25), at(0.5));
        assert!((at(0.7) - 0.55).abs() < 1e-9, "{}", at(0.7));
        assert_eq!(at(0.99), 1.0, "above the last bound nothing is known");
        assert_eq!(metrics.quantile("t", Some(("model_name", "nobody")), 0.5), None);
        assert_eq!(metrics.quantile("u", None, 0.5), None);
        let empty = Metrics::read("t_bucket{le=\"1\"} 0\nt_bucket{le=\"+Inf\"} 0\n", None);
        assert_eq!(empty.quantile("t", None, 0.5), None);
    }
}
