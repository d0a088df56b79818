//! Makes a plan that fails smaller, for as long as it fails in the same way.

use crate::plan::{Plan, Step, Who};
use crate::run::play;

/// Plays at most.
const MOST: usize = 400;

/// What is left of a plan when nothing more can be taken from it.
pub fn shrink(plan: &Plan, why: &str) -> Plan {
    let mut small = plan.clone();
    let mut plays = 0;
    let kind = kind_of(why);
    let mut fails = |plan: &Plan| {
        plays += 1;
        let failure = (plays <= MOST).then(|| play(plan, false).failure).flatten();
        failure.is_some_and(|failure| kind_of(&failure) == kind)
    };
    loop {
        let before = size(&small);
        for number in (0..small.clients.len()).rev() {
            let mut less = small.clone();
            less.clients[number].steps.clear();
            if !small.clients[number].steps.is_empty() && fails(&less) {
                small = less;
            }
        }
        for number in (0..small.faults.len()).rev() {
            let mut less = small.clone();
            less.faults.remove(number);
            if fails(&less) {
                small = less;
            }
        }
        if small.drains.is_some() {
            let mut less = small.clone();
            less.drains = None;
            if fails(&less) {
                small = less;
            }
        }
        for number in 0..small.clients.len() {
            let mut length = small.clients[number].steps.len() / 2;
            while length > 0 {
                let mut at = 0;
                while at + length <= small.clients[number].steps.len() {
                    let mut less = small.clone();
                    less.clients[number].steps.drain(at..at + length);
                    match may_be_played(&less, number) && fails(&less) {
                        true => small = less,
                        false => at += length,
                    }
                }
                length /= 2;
            }
        }
        if size(&small) == before {
            return small;
        }
    }
}

/// What an application chooses counts before it says more: so it waits behind all that it says.
fn may_be_played(plan: &Plan, number: usize) -> bool {
    let client = &plan.clients[number];
    let pairs = client.steps.windows(2);
    let mut pairs = pairs.map(|pair| matches!(pair, [Step::Say(_), Step::Say(_)]));
    client.who != Who::Application || !pairs.any(|follows| follows)
}

fn size(plan: &Plan) -> usize {
    let steps = plan.clients.iter().map(|client| client.steps.len());
    steps.sum::<usize>() + plan.faults.len() + usize::from(plan.drains.is_some())
}

/// The words of a failure without its numbers and texts.
fn kind_of(why: &str) -> String {
    let head = why.split(['"', '~']).next().unwrap_or(why);
    head.chars()
        .filter(|c| !c.is_ascii_digit())
        .take(60)
        .collect()
}

/// A plan as a script to read.
pub fn script(plan: &Plan) -> String {
    let mut text = format!("seed {}, configuration {}\n", plan.seed, plan.config);
    for fault in &plan.faults {
        text += &format!("  at {} ms: {:?}\n", fault.at, fault.what);
    }
    if let Some(at) = plan.drains {
        text += &format!("  at {at} ms: drain\n");
    }
    for (number, client) in plan.clients.iter().enumerate() {
        if client.steps.is_empty() {
            continue;
        }
        let (who, begins) = (client.who, client.begins);
        text += &format!(
            "  client {number}, {who:?}, from {begins} ms, {:?}\n",
            client.parameters
        );
        for step in &client.steps {
            text += &format!("    {step:?}\n");
        }
    }
    text
}
