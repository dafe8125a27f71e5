package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"

	"github.com/queuestream/broker/bridge"
)

// A composeFile is what the Compose file may hold: fields that nobody here
// knows are mistakes.
type composeFile struct {
	Services map[string]struct {
		Image       string            `yaml:"image"`
		Command     []string          `yaml:"command"`
		Environment map[string]string `yaml:"environment"`
		Volumes     []string          `yaml:"volumes"`
		Ports       []string          `yaml:"ports"`
		DependsOn   dependencies      `yaml:"depends_on"`
		Restart     string            `yaml:"restart"`
	} `yaml:"services"`
}

// dependencies are a list of services, or conditions by service.
type dependencies map[string]string

func (d *dependencies) UnmarshalYAML(n *yaml.Node) error {
	*d = dependencies{}
	if n.Kind == yaml.SequenceNode {
		var names []string
		if err := n.Decode(&names); err != nil {
			return err
		}
		for _, name := range names {
			(*d)[name] = "service_started"
		}
		return nil
	}
	var conditions map[string]struct {
		Condition string `yaml:"condition"`
	}
	if err := n.Decode(&conditions); err != nil {
		return err
	}
	for name, c := range conditions {
		(*d)[name] = c.Condition
	}
	return nil
}

// The Compose file starts what there is: images that "make image" builds, run
// with commands that their programs know, and a configuration that the bridge
// loads with the environment of its container.
func TestComposeFileFitsTheWorker(t *testing.T) {
	f, err := os.Open("../../deploy/compose/compose.yaml")
	check(t, err)
	defer func() { check(t, f.Close()) }()
	var c composeFile
	dec := yaml.NewDecoder(f)
	dec.KnownFields(true)
	check(t, dec.Decode(&c))
	script, err := os.ReadFile("../../scripts/image.sh")
	check(t, err)
	try, err := os.ReadFile("../../examples/try/main.go")
	check(t, err)
	built := regexp.MustCompile(`for name in ([a-z ]+); do`).FindSubmatch(script)
	if built == nil {
		t.Fatal("scripts/image.sh builds no images")
	}
	image := regexp.MustCompile(`^\$\{([A-Z]+)_IMAGE:-([a-z/-]+):([a-z0-9.]+)\}$`)
	for name, s := range c.Services {
		m := image.FindStringSubmatch(s.Image)
		if m == nil {
			t.Errorf("%s: image %q, want ${NAME_IMAGE:-image:tag}", name, s.Image)
			continue
		}
		if own, ok := strings.CutPrefix(m[2], "queuestream/"); ok && !slices.Contains(strings.Fields(string(built[1])), own) {
			t.Errorf("%s: nobody builds the image %s", name, m[2])
		}
		if m[2] == "queuestream/try" && (len(s.Command) != 1 || !strings.Contains(string(try), `"`+s.Command[0]+`": `)) {
			t.Errorf("%s: examples/try knows no command %v", name, s.Command)
		}
		for on, condition := range s.DependsOn {
			if _, ok := c.Services[on]; !ok || !slices.Contains([]string{"service_started", "service_completed_successfully"}, condition) {
				t.Errorf("%s depends on %s: %s", name, on, condition)
			}
			if condition == "service_completed_successfully" && c.Services[on].Restart != "" {
				t.Errorf("%s waits for the end of %s, which restarts", name, on)
			}
		}
	}

	worker := c.Services["bridge"]
	command := imageCommand(t)
	if len(worker.Volumes) != 1 {
		t.Fatalf("the bridge mounts %v, want its configuration", worker.Volumes)
	}
	from, to, _ := strings.Cut(strings.TrimSuffix(worker.Volumes[0], ":ro"), ":")
	if !slices.Contains(command, path.Clean(to)) {
		t.Errorf("the configuration is mounted at %s, the image runs %v", to, command)
	}
	file := filepath.Join("../../deploy/compose", from)
	data, err := os.ReadFile(file)
	check(t, err)
	var asked []string
	cfg, err := bridge.Load(data, file, func(name string) (string, bool) {
		asked = append(asked, name)
		v, ok := worker.Environment[name]
		return v, ok
	})
	check(t, err)
	if len(asked) == 0 {
		t.Error("the configuration reads nothing from the environment")
	}
	for _, name := range asked {
		if worker.Environment[name] == "" {
			t.Errorf("the bridge gets no %s", name)
		}
	}
	for name, url := range cfg.Brokers {
		known := false
		for service := range c.Services {
			known = known || strings.Contains(url, "//"+service)
		}
		if scheme, _, _ := strings.Cut(url, ":"); !known || openers().Brokers[scheme] == nil {
			t.Errorf("broker %s is at %s, which the worker cannot reach", name, url)
		}
	}
	if len(worker.Ports) != 1 || !strings.HasSuffix(worker.Ports[0], defaultListen) {
		t.Errorf("ports %v, the bridge listens on %s", worker.Ports, defaultListen)
	}
}

// imageCommand is what the image runs; the bridge must understand it.
func imageCommand(t *testing.T) []string {
	t.Helper()
	data, err := os.ReadFile("../../deploy/Dockerfile")
	check(t, err)
	m := regexp.MustCompile(`(?m)^CMD (\[.*\])$`).FindSubmatch(data)
	if m == nil {
		t.Fatal("the image runs nothing")
	}
	var args []string
	check(t, json.Unmarshal(m[1], &args))
	here := slices.Clone(args)
	for i, arg := range here {
		if path.IsAbs(arg) { // a file of the image
			here[i] = "../../deploy/compose/bridge.yaml"
		}
	}
	parser, err := kong.New(&cli{})
	check(t, err)
	if _, err := parser.Parse(here); err != nil {
		t.Errorf("the image runs bridge %v: %v", args, err)
	}
	return args
}

// Every metric of the shipped dashboard is one that the worker exports.
func TestDashboardFitsTheMetrics(t *testing.T) {
	data, err := os.ReadFile("../../deploy/grafana/bridge.json")
	check(t, err)
	if !json.Valid(data) {
		t.Fatal("the dashboard is no JSON")
	}
	m := newMetrics(nil)
	descs := make(chan *prometheus.Desc, 100)
	m.Describe(descs)
	m.seconds.Describe(descs)
	close(descs)
	exported := map[string]bool{}
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	for d := range descs {
		exported[name.FindStringSubmatch(d.String())[1]] = true
	}
	used := regexp.MustCompile(`bridge_[a-z_]+`).FindAllString(string(data), -1)
	if len(used) < 8 {
		t.Errorf("the dashboard uses only %v", used)
	}
	for _, name := range used {
		base := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
		if !exported[name] && !exported[base] {
			t.Errorf("the dashboard shows %s, which nobody exports", name)
		}
	}
}

// The image holds the binary alone: time zones that expressions name come with it.
func TestTimeZonesAreLinked(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	check(t, err)
	if !slices.Contains(strings.Fields(string(out)), "time/tzdata") {
		t.Error("the worker knows no time zones where the system has none")
	}
}
