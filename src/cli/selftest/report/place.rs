//! One placement on one server: its two guests, the proxies that serve them, their stage, and the
//! play.

use std::path::Path;
use std::sync::Arc;

use super::super::tables;
use super::{Outcome, Report};
use crate::attacks::made::Made;
use crate::attacks::play::{self, Verdict};
use crate::attacks::session::Way;
use crate::attacks::stage::{Apart, Cast, Stage};
use crate::attacks::{ATTACKS, Connections};
use crate::cluster::interrupted;
use crate::config::guests::{Guests, USER, load_with_guests, random_word};
use crate::config::{Config, Pooling, Posture, Route, Secret, Tier};
use crate::id::{PlacementName, ServerName, TenantId};
use crate::server::Proxy;

/// Server connections of the pools of the second proxy: B's, A's, and some to spare.
const SEVERAL: usize = 4;

pub struct Place {
    pub placement: PlacementName,
    pub server: ServerName,
    pub tier: Tier,
    pub pooling: Pooling,
    /// None: there is nothing to protect, or it is not known yet.
    pub posture: Option<Posture>,
}

/// Plays there, and takes away what was made for it. Whether it was interrupted.
pub async fn play(path: &Path, config: &Config, report: &mut Report) -> bool {
    let Some(server) = config.servers.get(&report.place.server) else {
        return false;
    };
    let mut made = Made::on(server.clone());
    // Dropped half-way, the play ends its proxies.
    let (is_interrupted, played) = tokio::select! {
        biased;
        () = interrupted() => (true, Ok(())),
        played = play_in(path, &mut made, report) => (false, played),
    };
    if let Err(why) = played {
        report.trouble.push(why);
    }
    if is_interrupted {
        report.trouble.push("interrupted".to_owned());
    }
    if let Err(left) = made.unmake().await {
        let left = left
            .into_iter()
            .map(|line| format!("could not be taken away again: {line}"));
        report.trouble.extend(left);
    }
    is_interrupted
}

async fn play_in(path: &Path, made: &mut Made, report: &mut Report) -> Result<(), String> {
    let guests = guests(&report.place);
    // In session pooling each client that is there has one.
    let few = match report.place.pooling {
        Pooling::Transaction => 1,
        Pooling::Session => 2,
    };
    let one = Served::start(path, &guests, few)?;
    let several = Served::start(path, &guests, SEVERAL)?;
    let [a, b] = &one.routes;
    let has_posture = !a.context.is_empty() || a.posture() > Posture::Plain;
    report.place.posture = has_posture.then(|| a.posture());
    let cast = Cast {
        routes: [a, b],
        ways: one.ways.clone(),
        mark: guests.marks[0].clone(),
        setter: false,
    };
    let mut stage = Stage::make(made, cast).await?;
    stage.let_act(&one.proxy.app().config(), &one.names);
    play::honest_work(&stage)
        .await
        .map_err(|why| format!("honest work does not do: {why}"))?;
    for attack in ATTACKS.iter().filter(|attack| attack.is_harmless) {
        let served = match attack.connections {
            Connections::One => &one,
            Connections::Several => &several,
        };
        stage.ways.clone_from(&served.ways);
        let verdict = play::play(attack, &stage).await;
        report.outcomes.push(Outcome::new(attack, verdict));
    }
    if report
        .outcomes
        .iter()
        .all(|outcome| outcome.verdict == Verdict::NotHere)
    {
        return Err("no attack applies here".to_owned());
    }
    // An attack that breaks something makes those after it say nothing.
    play::honest_work(&stage)
        .await
        .map_err(|why| format!("honest work does no more: {why}"))?;
    if stage.apart != Apart::Databases {
        let found = tables::look(&several.ways[0]).await?;
        report.leaking = found.leaking;
        report.notices = found.notices;
    }
    Ok(())
}

fn guests(place: &Place) -> Guests {
    let mark = random_word(10);
    Guests {
        placement: place.placement.to_string(),
        server: Some(place.server.clone()),
        pool_size: 1,
        marks: ["a", "b"].map(|who| format!("{who}_{mark}")),
        passwords: [(), ()].map(|()| Secret::new(random_word(24))),
    }
}

/// A proxy for the guests alone.
struct Served {
    routes: [Arc<Route>; 2],
    ways: [Way; 2],
    names: [String; 2],
    proxy: Proxy,
}

impl Served {
    fn start(path: &Path, guests: &Guests, pool_size: usize) -> Result<Self, String> {
        let guests = Guests {
            pool_size,
            ..guests.clone()
        };
        let (config, names) = load_with_guests(path, &guests).map_err(|mistakes| {
            let mistakes: Vec<_> = mistakes
                .iter()
                .map(|mistake| format!("{}: {}", mistake.path, mistake.message))
                .collect();
            format!(
                "it has no room for two more tenants: {}",
                mistakes.join("; ")
            )
        })?;
        let mut routes = Vec::new();
        for name in &names {
            let id = TenantId::new(name).map_err(|error| format!("{name}: {error}"))?;
            let tenant = config.tenants.get(id.as_str()).ok_or("no such tenant")?;
            routes.push(tenant.route.clone());
        }
        let routes: [Arc<Route>; 2] = routes.try_into().map_err(|_| "not two tenants")?;
        let proxy = Proxy::start(config, None).map_err(|error| error.to_string())?;
        let address = *proxy.addresses().first().ok_or("no port")?;
        let ways = [0, 1].map(|who: usize| {
            let user = format!("{USER}.{}", names[who]);
            let database = routes[who].pool.database.clone();
            Way::through(address, user, guests.passwords[who].clone(), database)
        });
        Ok(Self {
            routes,
            ways,
            names,
            proxy,
        })
    }
}
