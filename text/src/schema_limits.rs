//! What a JSON schema may cost, found out before the grammar library starts: it writes a rule for every counted item, crosses the
//! alternatives of schemas that must hold together, and follows references by recursion.
//! Refuses to know: what a schema means. Neighbours: grammar.rs.

use std::collections::HashMap;

use serde_json::Value as Json;

use crate::abi::{invalid, Outcome};

/// Counted items and properties of all arrays and objects of a schema.
const MAX_ITEMS: u64 = 20_000;
/// Alternatives of one place, after those that must hold together are crossed. The library compares them pair by pair.
const MAX_ALTERNATIVES: u64 = 2_000;
/// References followed one after the other.
const MAX_REFERENCES: usize = 64;

pub fn check(schema: &Json) -> Outcome<()> {
    let items = counted_items(schema);
    if items > MAX_ITEMS {
        return invalid(format!("the schema's minItems, maxItems, minProperties and maxProperties add up to {items}, above the limit of {MAX_ITEMS}"));
    }
    let mut walk = Walk { root: schema, known: HashMap::new(), chain: 0, too_long: false };
    let cost = walk.cost(schema);
    if walk.too_long {
        return invalid(format!("the schema's references lead through more than {MAX_REFERENCES} others"));
    }
    match cost.deepest {
        0..=MAX_ALTERNATIVES => Ok(()),
        _ => invalid(format!("the schema's allOf, anyOf and oneOf make more than {MAX_ALTERNATIVES} alternatives of one place")),
    }
}

/// A Lark grammar may hold schemas, each after %json.
pub fn check_lark(text: &str) -> Outcome<()> {
    for (at, mark) in text.match_indices("%json") {
        if let Some(Ok(schema)) = serde_json::Deserializer::from_str(&text[at + mark.len()..]).into_iter::<Json>().next() {
            check(&schema)?;
        }
    }
    Ok(())
}

fn children(schema: &Json) -> Box<dyn Iterator<Item = &Json> + '_> {
    match schema {
        Json::Array(list) => Box::new(list.iter()),
        Json::Object(fields) => Box::new(fields.values()),
        _ => Box::new(std::iter::empty()),
    }
}

fn counted_items(schema: &Json) -> u64 {
    let own = |key: &str| schema.get(key).and_then(Json::as_f64).unwrap_or(0.0).max(0.0) as u64;
    let inner = children(schema).map(counted_items).fold(0, u64::saturating_add);
    inner.saturating_add(own("minItems").max(own("maxItems"))).saturating_add(own("minProperties").max(own("maxProperties")))
}

/// Alternatives of a schema: of itself, and the most at any place inside it.
#[derive(Clone, Copy)]
struct Cost {
    own: u64,
    deepest: u64,
}

struct Walk<'a> {
    root: &'a Json,
    /// By reference; None while it is being followed.
    known: HashMap<&'a str, Option<Cost>>,
    /// References that are being followed.
    chain: usize,
    too_long: bool,
}

impl<'a> Walk<'a> {
    fn cost(&mut self, schema: &'a Json) -> Cost {
        let mut deepest = 1;
        let mut factors = Vec::new();
        let Some(fields) = schema.as_object() else {
            let inner = children(schema).map(|child| self.cost(child).deepest).max();
            return Cost { own: 1, deepest: inner.unwrap_or(1) };
        };
        // Each child is walked once, or nesting would double the work at every level.
        for (key, child) in fields {
            match (key.as_str(), child) {
                ("allOf", Json::Array(list)) => factors.extend(list.iter().map(|part| self.cost(part))),
                ("anyOf" | "oneOf", Json::Array(list)) => {
                    let options: Vec<Cost> = list.iter().map(|option| self.cost(option)).collect();
                    let own = options.iter().fold(0, |sum: u64, option| sum.saturating_add(option.own));
                    factors.push(Cost { own, deepest: options.iter().fold(own, |most, option| most.max(option.deepest)) });
                }
                ("$ref", Json::String(reference)) => factors.push(self.reference(reference)),
                _ => deepest = deepest.max(self.cost(child).deepest),
            }
        }
        // One alone is not crossed with anything; of several, the insides are crossed too.
        let own = match factors.as_slice() {
            [] => 1,
            [one] => one.own,
            several => several.iter().fold(1, |product: u64, factor| product.saturating_mul(factor.deepest.max(factor.own))),
        };
        Cost { own, deepest: deepest.max(own).max(factors.iter().map(|f| f.deepest).max().unwrap_or(1)) }
    }

    fn reference(&mut self, reference: &'a str) -> Cost {
        const ONE: Cost = Cost { own: 1, deepest: 1 };
        if let Some(known) = self.known.get(reference) {
            return known.unwrap_or(ONE);
        }
        let Some(target) = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer)) else { return ONE };
        if self.chain == MAX_REFERENCES {
            self.too_long = true;
            return ONE;
        }
        self.known.insert(reference, None);
        self.chain += 1;
        let cost = self.cost(target);
        self.chain -= 1;
        self.known.insert(reference, Some(cost));
        cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn counts_add_up_over_the_whole_schema() {
        assert!(check(&json!({"type": "array", "items": {}, "maxItems": 20000})).is_ok());
        assert!(check(&json!({"type": "array", "items": {}, "maxItems": 20001})).is_err());
        assert!(check(&json!({"type": "array", "items": {"type": "array", "minItems": 12000}, "minItems": 12000})).is_err());
        assert!(check(&json!({"minItems": 1e300})).is_err());
        assert!(check(&json!({"minItems": -5, "maxItems": "x"})).is_ok());
        assert!(check(&json!(true)).is_ok());
    }

    #[test]
    fn alternatives_that_hold_together_are_crossed() {
        let two = json!({"oneOf": [{"type": "string"}, {"type": "null"}]});
        assert!(check(&json!({"allOf": vec![two.clone(); 10]})).is_ok());
        assert!(check(&json!({"allOf": vec![two.clone(); 11]})).is_err());
        // Inside properties that merge, behind references, and as siblings.
        let inside = json!({"properties": {"a": two}});
        assert!(check(&json!({"allOf": vec![inside.clone(); 11]})).is_err());
        assert!(check(&json!({"$defs": {"x": inside}, "allOf": vec![json!({"$ref": "#/$defs/x"}); 11]})).is_err());
        let many = vec![json!({"type": "string"}); 100];
        assert!(check(&json!({"oneOf": many, "anyOf": many})).is_err());
        // Alone they only add up, however deep they lie.
        assert!(check(&json!({"anyOf": many, "properties": {"a": {"anyOf": many, "items": {"oneOf": many}}}})).is_ok());
        assert!(check(&json!({"oneOf": vec![json!({}); 2001]})).is_err());
    }

    #[test]
    fn references_end() {
        assert!(check(&json!({"$ref": "#"})).is_ok());
        assert!(check(&json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]})).is_ok());
        assert!(check(&json!({"$ref": "#/nowhere"})).is_ok());
        let chain = |length: usize| {
            let mut defs = serde_json::Map::new();
            for i in 0..length {
                defs.insert(format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", i + 1)}));
            }
            defs.insert(format!("d{length}"), json!({"type": "string"}));
            json!({"$ref": "#/$defs/d0", "$defs": defs})
        };
        assert!(check(&chain(60)).is_ok());
        assert!(check(&chain(5000)).is_err());
    }

    #[test]
    fn schemas_inside_lark() {
        assert!(check_lark("start: obj\nobj: %json {\"maxItems\": 5}\n").is_ok());
        assert!(check_lark("start: obj\nobj: %json {\"max\\u0049tems\": 50000}\n").is_err());
        assert!(check_lark("start: \"%json\" %json %json{\"minItems\":1e9}").is_err());
        assert!(check_lark("%json {").is_ok());
    }
}
