//! Servers that others wrote, each started on a port of its own with a folder of its own. Where one is
//! not installed, the reason is printed, and there is none.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::{Process, free_port, until};

/// A server and its folder.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    pub(crate) folder: TempDir,
    /// The server behind a proxy.
    behind: Option<Box<Server>>,
}

impl Server {
    /// Starts `program` with as many descriptors as it can have; its folder is `{}` in the
    /// arguments. `None`, with the reason printed, where it is not installed.
    fn start(
        program: &str,
        files: &[(&str, String)],
        port: u16,
        arguments: &[&str],
    ) -> Option<Self> {
        let Some(path) = installed(program) else {
            println!("skipped: {program} is not installed");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().to_str().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content.replace("{}", there)).unwrap();
        }
        let child = Command::new("sh")
            .args(["-c", "ulimit -n $(ulimit -Hn); exec \"$0\" \"$@\""])
            .arg(path)
            .args(arguments.iter().map(|argument| argument.replace("{}", there)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("there is a shell");
        let mut process = Process(child);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        until(&format!("{program} listens"), || {
            let ended = process.0.try_wait().expect("it is a child of ours");
            assert!(ended.is_none(), "{program} ended: {ended:?}");
            TcpStream::connect(address).is_ok()
        });
        Some(Self { process, address, folder, behind: None })
    }

    /// nginx with one worker, and this much in its `http` block.
    pub(crate) fn nginx(http: &str) -> Option<Self> {
        let port = free_port();
        let conf = format!(
            "daemon off; worker_processes 1; pid {{}}/pid; error_log {{}}/error.log;\n\
             {} events {{ worker_connections 20000; }}\n\
             http {{ access_log off; {http}\n\
             client_body_temp_path {{}}/body; proxy_temp_path {{}}/proxy;\n\
             fastcgi_temp_path {{}}/fastcgi; uwsgi_temp_path {{}}/uwsgi;\n\
             scgi_temp_path {{}}/scgi;\n\
             server {{ listen 127.0.0.1:{port} backlog=4096; root {{}}; }} }}\n",
            // The folder is root's, and closed to the user that nginx would change to.
            if is_root() { "user root;" } else { "" }
        );
        let page = "<!doctype html>\n<html><body><p>A small page.</p></body></html>\n".to_owned();
        let files = [("nginx.conf", conf), ("index.html", page)];
        Self::start(
            "nginx",
            &files,
            port,
            &["-p", "{}", "-c", "{}/nginx.conf", "-e", "{}/early.log"],
        )
    }

    pub(crate) fn redis() -> Option<Self> {
        Self::redis_with(&[])
    }

    /// `redis-server` with further arguments.
    pub(crate) fn redis_with(further: &[&str]) -> Option<Self> {
        let port = free_port();
        let number = port.to_string();
        let arguments = [
            "--port",
            &number,
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            "{}",
            "--daemonize",
            "no",
            "--logfile",
            "{}/log",
            "--protected-mode",
            "no",
        ];
        Self::start("redis-server", &[], port, &[&arguments[..], further].concat())
    }

    pub(crate) fn target(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn pid(&self) -> String {
        self.process.pid().to_string()
    }

    /// `HAProxy` in front of nginx.
    pub(crate) fn haproxy() -> Option<Self> {
        let nginx = Self::nginx("")?;
        let port = free_port();
        let conf = format!(
            "global\n  maxconn 2000\n\
             defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
             frontend in\n  bind 127.0.0.1:{port}\n  default_backend out\n\
             backend out\n  server one {}\n",
            nginx.address
        );
        let files = [("haproxy.cfg", conf)];
        let mut haproxy = Self::start("haproxy", &files, port, &["-db", "-f", "{}/haproxy.cfg"])?;
        haproxy.behind = Some(Box::new(nginx));
        Some(haproxy)
    }

    /// `PostgreSQL` with its usual limits, of which 100 connections is one. It runs as the user
    /// `postgres`, since it refuses to run as root.
    pub(crate) fn postgres() -> Option<Self> {
        let (Some(initdb), Some(postgres)) = (installed("initdb"), installed("postgres")) else {
            println!("skipped: PostgreSQL is not installed");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let data_text = data.to_str().unwrap();
        // The whole way to the data must be open to the server's user.
        let own = if is_root() {
            "chown postgres \"$1\" && exec setpriv --reuid=postgres \
            --regid=postgres --clear-groups"
        } else {
            "exec"
        };
        let line = format!("{own} \"$0\" -D \"$2\" -A trust --no-sync -U postgres");
        let made = Command::new("sh")
            .args(["-c", &line])
            .arg(initdb)
            .args([folder.path().to_str().unwrap(), data_text])
            .stdin(Stdio::null())
            .output()
            .expect("there is a shell");
        if !made.status.success() {
            println!("skipped: initdb: {}", String::from_utf8_lossy(&made.stderr));
            return None;
        }
        let port = free_port().to_string();
        let listen = ["-p", &port, "-c", "listen_addresses=127.0.0.1"];
        let further =
            ["-c", "unix_socket_directories=", "-c", "logging_collector=off", "-D", data_text];
        let postgres = postgres.to_str().unwrap();
        let run_as = ["--reuid=postgres", "--regid=postgres", "--clear-groups", postgres];
        let port = port.parse().unwrap();
        let mut server = if is_root() {
            Self::start("setpriv", &[], port, &[&run_as[..], &listen, &further].concat())?
        } else {
            Self::start("postgres", &[], port, &[&listen[..], &further].concat())?
        };
        server.folder = folder;
        // It listens before it is ready, and turns away whoever comes meanwhile.
        until("PostgreSQL lets a client in", || is_let_in(server.address));
        Some(server)
    }
}

/// Whether `PostgreSQL` answers a startup packet with a request for (no) authentication, `R`, and not
/// with an error, `E`.
fn is_let_in(postgres: SocketAddr) -> bool {
    let Ok(mut client) = TcpStream::connect(postgres) else { return false };
    let mut kind = [0];
    let asked = client.write_all(b"\0\0\0\x17\0\x03\0\0user\0postgres\0\0");
    asked.is_ok() && client.read_exact(&mut kind).is_ok() && kind == *b"R"
}

/// The program's path: as the shell finds it, or where Debian keeps what is root's,
/// and each version of `PostgreSQL`.
pub(crate) fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .chain(postgres_folders())
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

fn postgres_folders() -> Vec<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions.map(|version| version.path().join("bin")).collect()
}
