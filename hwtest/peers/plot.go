//go:build linux

package peers

import (
	"fmt"
	"html"
	"io"
	"math"
	"strconv"
	"strings"
)

// Size of the plot and of its margins, in pixels.
const (
	plotWidth, plotHeight  = 760, 420
	left, right, top, foot = 64, 24, 48, 56
)

// series is one line of a plot.
type series struct {
	name, color string
	of          func(Figure) float64
}

var plotted = [...]struct{ name, color string }{{"slowest sled", "#b3472b"}, {"median sled", "#1f6f8b"}, {"fastest sled", "#7a8b3a"}}

func lines() []series {
	of := []func(Figure) float64{
		func(f Figure) float64 { return f.Max }, func(f Figure) float64 { return f.Median }, func(f Figure) float64 { return f.Min },
	}
	out := make([]series, len(plotted))
	for i, p := range plotted {
		out[i] = series{p.name, p.color, of[i]}
	}
	return out
}

// canvas maps values to pixels.
type canvas struct {
	strings.Builder
	maxX, maxY float64
}

func (c *canvas) x(v float64) float64 { return left + v/c.maxX*(plotWidth-left-right) }
func (c *canvas) y(v float64) float64 { return plotHeight - foot - v/c.maxY*(plotHeight-top-foot) }

func (c *canvas) put(format string, args ...any) { _, _ = fmt.Fprintf(c, format+"\n", args...) }

// Plot draws the figures of [Boots] as an SVG image: number of sleds against milliseconds. It draws nothing but shapes and
// text, so that any viewer shows it. Equal figures give equal bytes.
func Plot(w io.Writer, title string, figures []Figure) error {
	c := &canvas{maxX: 1, maxY: 1}
	for _, f := range figures {
		n, err := strconv.Atoi(f.Who)
		if err != nil {
			return fmt.Errorf("peers: plot: have %.20q, want a number of sleds", f.Who)
		}
		c.maxX, c.maxY = max(c.maxX, float64(n)), max(c.maxY, f.Max)
	}
	step := stride(c.maxY)
	c.maxY = math.Ceil(c.maxY/step) * step
	c.put(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13" fill="#222">`, plotWidth, plotHeight)
	c.put(`<rect width="%d" height="%d" fill="#ffffff"/>`, plotWidth, plotHeight)
	c.put(`<text x="%d" y="26" font-size="16">%s</text>`, left, html.EscapeString(title))
	c.axes(figures, step)
	for i, s := range lines() {
		c.line(s, figures)
		y := top + 8 + 20*i
		c.put(`<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="%s" stroke-width="2"/>`, left+20, y, left+48, y, s.color)
		c.put(`<text x="%d" y="%d">%s</text>`, left+56, y+4, s.name)
	}
	c.put(`</svg>`)
	_, err := io.WriteString(w, c.String())
	return err
}

// stride is a round distance between about six grid lines.
func stride(top float64) float64 {
	unit := math.Pow(10, math.Floor(math.Log10(top)))
	for _, f := range []float64{0.1, 0.2, 0.5, 1} {
		if top/(f*unit) <= 8 {
			return f * unit
		}
	}
	return 2 * unit
}

func (c *canvas) axes(figures []Figure, step float64) {
	for i := 0; float64(i)*step <= c.maxY*1.0001; i++ {
		v := float64(i) * step
		c.put(`<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#dddddd"/>`, left, c.y(v), plotWidth-right, c.y(v))
		c.put(`<text x="%d" y="%.1f" text-anchor="end">%g</text>`, left-8, c.y(v)+4, v)
	}
	for _, f := range figures {
		n, _ := strconv.ParseFloat(f.Who, 64) // checked by Plot
		c.put(`<text x="%.1f" y="%d" text-anchor="middle">%s</text>`, c.x(n), plotHeight-foot+20, f.Who)
	}
	c.put(`<text x="%d" y="%d" text-anchor="middle">sleds of the rack, all booted at once on one machine</text>`, (plotWidth+left-right)/2, plotHeight-12)
	c.put(`<text x="%d" y="%d" text-anchor="end">ms</text>`, left-8, top-10)
}

func (c *canvas) line(s series, figures []Figure) {
	var points []string
	for _, f := range figures {
		n, _ := strconv.ParseFloat(f.Who, 64) // checked by Plot
		points = append(points, fmt.Sprintf("%.1f,%.1f", c.x(n), c.y(s.of(f))))
	}
	c.put(`<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`, strings.Join(points, " "), s.color)
	for _, p := range points {
		x, y, _ := strings.Cut(p, ",")
		c.put(`<circle cx="%s" cy="%s" r="3" fill="%s"/>`, x, y, s.color)
	}
}
