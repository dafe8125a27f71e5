package containers

import (
	"embed"
	"strings"
)

// images holds the Dockerfiles, the build script and the pinned versions.
//
//go:embed images
var images embed.FS

// configs holds the brokers' configurations, copied into every container.
//
//go:embed config
var configs embed.FS

// pins are the settings of images/versions.env.
var pins = parsePins(mustRead(images, "images/versions.env"))

// parsePins reads NAME=value lines; blank lines and comments are skipped.
func parsePins(b []byte) map[string]string {
	m := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if name, value, ok := strings.Cut(line, "="); ok {
			m[name] = value
		}
	}
	return m
}

// mustRead reads a file that was embedded when the package was built.
func mustRead(fs embed.FS, name string) []byte {
	b, err := fs.ReadFile(name)
	if err != nil {
		panic("containers: " + err.Error())
	}
	return b
}

// imageName is the name of the kind's folder under images/ and of its image.
func (k Kind) imageName() string {
	switch k {
	case KindSQS:
		return "elasticmq"
	case KindSNS:
		return "moto"
	default:
		return string(k)
	}
}

// Version returns the version of the kind's broker that this module pins.
func (k Kind) Version() string { return pins[strings.ToUpper(k.imageName())+"_VERSION"] }

// LocalImage returns the name of the image that is built from images/.
func (k Kind) LocalImage() string {
	return "queuestream/" + k.imageName() + ":" + k.Version() + "-r" + pins["IMAGES_REVISION"]
}

// OfficialImage returns the name of the pinned official image.
func (k Kind) OfficialImage() string { return pins[strings.ToUpper(k.imageName())+"_OFFICIAL"] }
