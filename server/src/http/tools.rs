//! Tools: what a client offers, how the model is told, and the calls that come back.
//!
//! A choice of `required` or of one tool is a grammar: the answer is a call, its arguments keep to the tool's
//! schema. With `auto` the model decides: where it has markers for calls, the engine's phases part them from the
//! answer; where it has none, an answer that is nothing but a call of a known tool is one.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::error::ApiError;
use super::wire::fresh_id;

/// Most tools of one request.
const MAX_TOOLS: usize = 128;

/// A tool, in OpenAI's form.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// `function`.
    #[serde(rename = "type")]
    #[schema(pattern = "^function$")]
    pub kind: String,
    /// The function.
    pub function: Function,
}

/// A function that the client can call.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Function {
    /// Its name.
    #[schema(pattern = "^[a-zA-Z0-9_.-]{1,64}$")]
    pub name: String,
    /// What it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A schema of its arguments; any object if it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// Calls that are demanded keep to the schema anyway; those that the model makes on its own are not bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// Whether to call.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ToolChoice {
    /// none, auto or required.
    Word(ChoiceWord),
    /// This one.
    Named(NamedChoice),
}

/// Whether to call.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChoiceWord {
    /// Not at all.
    None,
    /// As the model likes.
    #[default]
    Auto,
    /// One of them.
    Required,
}

/// A tool that must be called.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedChoice {
    /// `function`.
    #[serde(rename = "type")]
    #[schema(pattern = "^function$")]
    pub kind: String,
    /// Which.
    pub function: ChosenFunction,
}

/// Which tool.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChosenFunction {
    /// Its name.
    pub name: String,
}

/// The tools of a request, checked.
#[derive(Clone, Debug)]
pub struct Tools {
    functions: Vec<Function>,
    /// The answer must be a call.
    pub demanded: bool,
}

/// A call.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ToolCall {
    /// Its id.
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What is called.
    pub function: CalledFunction,
}

/// What is called.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct CalledFunction {
    /// Its name.
    pub name: String,
    /// Its arguments, as JSON text.
    pub arguments: String,
}

impl Tools {
    /// From a request; `None`: the model is told of no tool.
    ///
    /// # Errors
    /// 400 with the field.
    pub fn read(tools: Option<&[Tool]>, choice: Option<&ToolChoice>) -> Result<Option<Self>, ApiError> {
        let Some(tools) = tools else {
            return match choice {
                None | Some(ToolChoice::Word(ChoiceWord::None)) => Ok(None),
                Some(_) => Err(ApiError::invalid("tool_choice", "is given without tools")),
            };
        };
        if tools.is_empty() || tools.len() > MAX_TOOLS {
            return Err(ApiError::invalid(
                "tools",
                format!("{} tools; between 1 and {MAX_TOOLS} are taken", tools.len()),
            ));
        }
        let mut functions: Vec<Function> = Vec::new();
        for (i, tool) in tools.iter().enumerate() {
            let at = |field: &str| format!("tools[{i}].{field}");
            let name = &tool.function.name;
            let good = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
            if tool.kind != "function" {
                return Err(ApiError::invalid(at("type"), "only `function` is implemented"));
            }
            if name.is_empty() || name.len() > 64 || !name.bytes().all(good) {
                return Err(ApiError::invalid(at("function.name"), "is not 1 to 64 letters, digits, `_`, `.` or `-`"));
            }
            if functions.iter().any(|f| f.name == *name) {
                return Err(ApiError::invalid(at("function.name"), "is there twice"));
            }
            if tool.function.parameters.as_ref().is_some_and(|p| !p.is_object()) {
                return Err(ApiError::invalid(at("function.parameters"), "is no schema: an object is expected"));
            }
            functions.push(tool.function.clone());
        }
        match choice {
            Some(ToolChoice::Word(ChoiceWord::None)) => Ok(None),
            None | Some(ToolChoice::Word(ChoiceWord::Auto)) => Ok(Some(Self { functions, demanded: false })),
            Some(ToolChoice::Word(ChoiceWord::Required)) => Ok(Some(Self { functions, demanded: true })),
            Some(ToolChoice::Named(named)) => {
                functions.retain(|f| f.name == named.function.name);
                if functions.is_empty() {
                    return Err(ApiError::invalid("tool_choice.function.name", "is none of the tools"));
                }
                Ok(Some(Self { functions, demanded: true }))
            }
        }
    }

    /// The tools as templates expect them.
    pub fn for_template(&self) -> Value {
        let tool = |f: &Function| {
            let mut function = json!({ "name": f.name, "parameters": parameters(f) });
            if let Some(description) = &f.description {
                function["description"] = description.as_str().into();
            }
            json!({ "type": "function", "function": function })
        };
        self.functions.iter().map(tool).collect()
    }

    /// What a model is told whose template knows no tools.
    pub fn in_words(&self) -> String {
        let tools: Vec<String> = self.for_template().as_array().into_iter().flatten().map(Value::to_string).collect();
        format!(
            "You may call these functions:\n{}\nA call is one JSON object and nothing else: \
             {{\"name\": NAME, \"arguments\": OBJECT}}",
            tools.join("\n")
        )
    }

    /// The schema of a call, for answers that must be one.
    pub fn schema(&self) -> Value {
        let call = |f: &Function| {
            json!({
                "type": "object",
                "properties": { "name": { "const": f.name }, "arguments": parameters(f) },
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        };
        match &self.functions[..] {
            [one] => call(one),
            several => json!({ "anyOf": several.iter().map(call).collect::<Vec<_>>() }),
        }
    }

    /// The calls in a text that is nothing but calls; `None` if it is anything else.
    pub fn calls(&self, text: &str) -> Option<Vec<ToolCall>> {
        let mut calls = Vec::new();
        let mut rest = strip(text);
        while !rest.is_empty() {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Map<String, Value>>();
            let value = values.next()?.ok()?;
            rest = strip(&rest[values.byte_offset()..]);
            calls.push(self.call(&value)?);
        }
        (!calls.is_empty()).then_some(calls)
    }

    fn call(&self, value: &Map<String, Value>) -> Option<ToolCall> {
        let name = value.get("name")?.as_str()?;
        self.functions.iter().find(|f| f.name == name)?;
        let arguments = value.get("arguments").or_else(|| value.get("parameters"))?;
        let arguments = arguments.as_str().map_or_else(|| arguments.to_string(), String::from);
        let function = CalledFunction { name: name.into(), arguments };
        Some(ToolCall { id: fresh_id("call"), kind: "function", function })
    }
}

fn parameters(function: &Function) -> Value {
    function.parameters.clone().unwrap_or_else(|| json!({ "type": "object" }))
}

/// Without blanks and the usual markers at the beginning.
fn strip(text: &str) -> &str {
    let mut text = text.trim_start();
    while let Some(rest) = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]"].iter().find_map(|m| text.strip_prefix(m)) {
        text = rest.trim_start();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(choice: Value) -> Result<Option<Tools>, ApiError> {
        let list = json!([
            { "type": "function", "function": { "name": "add", "parameters": { "type": "object" } } },
            { "type": "function", "function": { "name": "now" } },
        ]);
        let list: Vec<Tool> = serde_json::from_value(list).unwrap();
        let choice: Option<ToolChoice> = serde_json::from_value(choice).unwrap();
        Tools::read(Some(&list), choice.as_ref())
    }

    #[test]
    fn calls_are_read_and_other_text_is_not() {
        let tools = tools(Value::Null).unwrap().unwrap();
        let names = |text: &str| -> Option<Vec<(String, String)>> {
            let calls = tools.calls(text)?;
            Some(calls.into_iter().map(|c| (c.function.name, c.function.arguments)).collect())
        };
        let add = ("add".to_string(), "{\"a\":1}".to_string());
        assert_eq!(names("{\"name\": \"add\", \"arguments\": {\"a\": 1}}"), Some(vec![add.clone()]));
        let two = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>\n<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
        assert_eq!(names(two), Some(vec![add, ("now".into(), "{}".into())]));
        for other in [
            "",
            "Hello",
            "{\"name\": \"rm\", \"arguments\": {}}",
            "{\"name\": \"add\"}",
            "{\"name\": \"now\", \"arguments\": {}} and",
        ] {
            assert_eq!(names(other), None, "{other}");
        }
    }

    #[test]
    fn choices() {
        assert!(tools(json!("none")).unwrap().is_none());
        assert!(!tools(json!("auto")).unwrap().unwrap().demanded);
        let all = tools(json!("required")).unwrap().unwrap();
        assert!(all.demanded && all.schema()["anyOf"].as_array().unwrap().len() == 2);
        let one = tools(json!({ "type": "function", "function": { "name": "now" } })).unwrap().unwrap();
        assert_eq!(one.schema()["properties"]["name"]["const"], "now");
        let error = tools(json!({ "type": "function", "function": { "name": "rm" } })).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("tool_choice.function.name"));
        assert_eq!(Tools::read(Some(&[]), None).unwrap_err().param.as_deref(), Some("tools"));
    }
}
