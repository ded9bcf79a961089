//! What chat templates expect of Python: string methods that see through marks, `tojson` as
//! transformers has it, `strftime`.

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind, State};
use serde::Serialize;

use super::marks::Marked;

/// Methods of strings, lists and maps. Marked strings get mark-aware ones; the rest is pycompat.
pub fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args);
    };
    // A width in a format string allocates that many characters, whatever the fuel.
    if name == "format" && text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 4) {
        return Err(Error::new(ErrorKind::InvalidOperation, "a format of more than 9999 characters"));
    }
    let plain_args: Vec<Value> = args.iter().map(without_marks).collect();
    if Marked::is_marked(text)
        && let Some(result) = marked_method(&Marked::read(text), name, &plain_args)
    {
        return Ok(result);
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

fn without_marks(value: &Value) -> Value {
    match value.as_str() {
        Some(s) if Marked::is_marked(s) => Value::from(Marked::read(s).plain()),
        _ => value.clone(),
    }
}

/// The methods for which marks must be air; `None` for the others, which may see them.
fn marked_method(text: &Marked, name: &str, args: &[Value]) -> Option<Value> {
    let arg = args.first().filter(|a| !a.is_none());
    let what = arg.and_then(Value::as_str);
    let chars = |c: char| what.map_or(c.is_whitespace(), |set| set.contains(c));
    let strings = |parts: Vec<Marked>| parts.iter().map(|p| Value::from(p.write())).collect::<Value>();
    let plain = || text.plain();
    Some(match (name, what) {
        ("strip", _) => text.trim(true, true, chars).write().into(),
        ("lstrip", _) => text.trim(true, false, chars).write().into(),
        ("rstrip", _) => text.trim(false, true, chars).write().into(),
        ("split", None) if arg.is_none() => strings(text.words()),
        ("split", Some(separator)) if !separator.is_empty() => {
            let most = args.get(1).and_then(|m| usize::try_from(m.clone()).ok()).unwrap_or(usize::MAX);
            strings(text.split(separator, most))
        }
        ("splitlines", None) if arg.is_none() => {
            let mut lines = text.split("\n", usize::MAX);
            if lines.last().is_some_and(|l| l.plain().is_empty()) {
                lines.pop();
            }
            strings(lines)
        }
        ("startswith", Some(s)) => plain().starts_with(s).into(),
        ("endswith", Some(s)) => plain().ends_with(s).into(),
        ("startswith" | "endswith", None) => {
            let any_of: Vec<Value> = arg?.try_iter().ok()?.collect();
            any_of.iter().any(|v| marked_method(text, name, &[without_marks(v)]).is_some_and(|r| r.is_true())).into()
        }
        ("count", Some(s)) => text.find_all(s).len().into(),
        ("find", Some(s)) => text.find_all(s).first().map_or(-1, |i| *i as i64).into(),
        ("isspace", _) => plain().chars().all(char::is_whitespace).into(),
        ("isdigit" | "isnumeric", _) => plain().chars().all(char::is_numeric).into(),
        ("isalpha", _) => plain().chars().all(char::is_alphabetic).into(),
        ("isalnum", _) => plain().chars().all(char::is_alphanumeric).into(),
        _ => return None,
    })
}

/// `trim`: Jinja's filter, for marked strings and others.
pub fn trim(value: &Value, chars: Option<String>) -> Value {
    let text = match value.as_str() {
        Some(text) => text.to_string(),
        None => value.to_string(),
    };
    let strips = |c: char| chars.as_deref().map_or(c.is_whitespace(), |set| set.contains(c));
    if Marked::is_marked(&text) {
        return Marked::read(&text).trim(true, true, strips).write().into();
    }
    text.trim_matches(strips).into()
}

/// `length`: marks do not count.
pub fn length(value: &Value) -> Result<usize, Error> {
    match value.as_str() {
        Some(text) => Ok(Marked::read(text).plain().chars().count()),
        None => value.len().ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "this has no length")),
    }
}

/// `tojson` as transformers defines it: `json.dumps(value, ensure_ascii=False)`, so `", "` and `": "`
/// between things and nothing escaped for HTML. `indent=n` breaks lines.
pub fn tojson(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        None => options.get::<Option<usize>>("indent")?,
        indent => indent,
    };
    let fail = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut out = Vec::new();
    match indent {
        Some(n) if n <= 16 => {
            let spaces = " ".repeat(n);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).map_err(fail)?;
        }
        Some(n) => return Err(Error::new(ErrorKind::InvalidOperation, format!("an indent of {n}"))),
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)).map_err(fail)?,
    }
    let text = String::from_utf8(out).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(Value::from(text))
}

/// Python's default separators.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// `strftime` of a moment (seconds since 1970, UTC), for the directives that templates use.
/// Days to dates: Howard Hinnant, "chrono-compatible low-level date algorithms".
pub fn strftime(format: &str, now: i64) -> String {
    let (days, seconds) = (now.div_euclid(86_400), now.rem_euclid(86_400));
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100); // from 1 March
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days + 4).rem_euclid(7) as usize]);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('e') => out.push_str(&format!("{day:2}")),
            Some('-') => {
                out.push_str(strftime(&format!("%{}", chars.next().unwrap_or('%')), now).trim_start_matches('0'))
            }
            Some('y') => out.push_str(&format!("{:02}", year.rem_euclid(100))),
            Some('H') => out.push_str(&format!("{hour:02}")),
            Some('I') => out.push_str(&format!("{:02}", (hour + 11) % 12 + 1)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('M') => out.push_str(&format!("{minute:02}")),
            Some('S') => out.push_str(&format!("{second:02}")),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('Z') => out.push_str("UTC"),
            Some('%') => out.push('%'),
            other => out.extend(['%'].into_iter().chain(other)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        // 2024-02-29 13:04:05 UTC, a Thursday.
        let leap = 1_709_211_845;
        assert_eq!(strftime("%d %b %Y", leap), "29 Feb 2024");
        assert_eq!(strftime("%A, %B %-d, %Y %I:%M:%S %p %%", leap), "Thursday, February 29, 2024 01:04:05 PM %");
        assert_eq!(strftime("%Y-%m-%d %H", 0), "1970-01-01 00");
        assert_eq!(strftime("%a %Y-%m-%d", -86_400), "Wed 1969-12-31");
    }

    #[test]
    fn json_as_python_writes_it() {
        let value =
            Value::from(minijinja::value::Serde(serde_json::json!({"b": [1, 2.5, null, true], "a": "é<\n\"&'"})));
        let text = tojson(&value, None, Kwargs::from_iter(Vec::<(String, Value)>::new()));
        assert_eq!(text.expect("serialises").to_string(), r#"{"b": [1, 2.5, null, true], "a": "é<\n\"&'"}"#);
    }
}
