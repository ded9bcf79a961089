//! `ponder run --config FILE`: which instance of the file answers one prompt, by the rules of `ponder serve`.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use ponder::{Opened, Prompt};
use ponder_engine::request::SamplingParams;
use ponder_engine::schedule::route::{Ask, Place, Router};

use super::config::{self, InstancePlan, ModelPlan};

/// An instance that was chosen; only its model will be loaded.
pub struct Picked {
    /// What requests would call it.
    pub name: String,
    /// Its opened files.
    pub opened: Opened,
}

/// Opens the file's models that `named` may mean (the first one if it means none), and routes the prompt. `params`
/// are the request's, given what a model recommends.
///
/// # Errors
/// Those of [`config::read`], a name that the file does not have, and a prompt that no instance can hold.
pub fn pick(
    file: &Path,
    named: Option<&str>,
    prompt: &Prompt,
    params: impl Fn(&Opened) -> SamplingParams,
) -> Result<Picked> {
    let plans = config::read(file, &config::given("run", &["model"]))?;
    let (ModelPlan { names, instances }, instance) =
        choose(plans, named).with_context(|| file.display().to_string())?;
    let (mut members, mut places, mut prompts, mut expected, mut max_tokens) = (vec![], vec![], vec![], None, None);
    for InstancePlan { name, up_to, options } in instances {
        let slots = options.max_num_seqs;
        let opened = Opened::open(options)?;
        let params = params(&opened);
        let read = opened.prompter.prepare(prompt, &params)?;
        expected.get_or_insert_with(|| opened.prompter.expected_tokens(&read, &params));
        max_tokens = params.max_tokens;
        places.push(Place { name, up_to, max_model_len: opened.max_model_len(), slots });
        prompts.push(read.tokens);
        members.push(opened);
    }
    let room = places.iter().zip(&prompts).map(|(p, ids)| p.max_model_len.saturating_sub(ids.len())).max();
    let ask = Ask {
        named: instance.as_deref(),
        prompts: &prompts,
        expected: expected.unwrap_or_default(),
        // As in an engine alone: who asks for more than there is room for gets what there is.
        max_tokens: max_tokens.map(|most| most.min(room.unwrap_or(0)).max(1)),
        salt: 0,
    };
    let (_, index) = Router::new(places.clone())?.route(&ask)?;
    let index = index.ok_or_else(|| anyhow!("no instance has a seat"))?;
    let name = match places[index].name.as_str() {
        "" => names[0].clone(),
        instance => format!("{}/{instance}", names[0]),
    };
    Ok(Picked { name, opened: members.swap_remove(index) })
}

/// The model of that name, and the instance if it names one (`model/instance`).
fn choose(mut plans: Vec<ModelPlan>, named: Option<&str>) -> Result<(ModelPlan, Option<String>)> {
    let Some(named) = named else { return Ok((plans.swap_remove(0), None)) };
    let of = |name: &str| plans.iter().position(|plan| plan.names.iter().any(|n| n == name));
    let (at, instance) = match (of(named), named.rsplit_once('/')) {
        (Some(at), _) => (Some(at), None),
        (None, Some((model, instance))) => (of(model), Some(instance.to_string())),
        (None, None) => (None, None),
    };
    let at = at.ok_or_else(|| {
        let names: Vec<&str> = plans.iter().flat_map(|plan| &plan.names).map(String::as_str).collect();
        anyhow!("model: {named:?} is none of {}", names.join(", "))
    })?;
    Ok((plans.swap_remove(at), instance))
}
