{{- /* Names are fixed: a cluster has one installation, because agents share the nodes' ports and directories. */ -}}
{{- define "hearth.labels" -}}
app.kubernetes.io/part-of: hearth
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "hearth.agentLabels" -}}
app.kubernetes.io/name: hearth-agent
app.kubernetes.io/component: agent
{{ include "hearth.labels" . }}
{{- end -}}

{{- define "hearth.controllerLabels" -}}
app.kubernetes.io/name: hearth-controller
app.kubernetes.io/component: controller
{{ include "hearth.labels" . }}
{{- end -}}

{{- define "hearth.image" -}}
{{- .Values.image.repository -}}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- with .Values.image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- /* What `private: agent` or `private: challenge` makes readable, peers must not give to strangers. */ -}}
{{- define "hearth.check" -}}
{{- if and .Values.peers.enabled (eq .Values.peers.tls.source "none") -}}
{{- range .Values.registries -}}
{{- if and .private (ne .private "decline") -}}
{{- fail (printf "registries: `%s` has `private: %s`, and peers without TLS would give its images to every pod: set peers.tls.source=controller, or peers.enabled=false" .host .private) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* `agent.yaml` as an object, in YAML. */ -}}
{{- define "hearth.config" -}}
{{- include "hearth.check" . -}}
{{- $store := dict "lockWait" "30m" -}}
{{- with .Values.store.limit }}{{ $_ := set $store "limit" . }}{{ end -}}
{{- with .Values.store.minFree }}{{ $_ := set $store "minFree" . }}{{ end -}}
{{- $kubernetes := dict "imageSets" .Values.imageSets.enabled -}}
{{- /* The controller waits for the nodes that have an agent. */ -}}
{{- if ne (toJson .Values.nodeSelector) (toJson (dict "kubernetes.io/os" "linux")) -}}
{{- $labels := list -}}
{{- range $key := keys .Values.nodeSelector | sortAlpha -}}
{{- $labels = append $labels (printf "%s=%s" $key (get $.Values.nodeSelector $key)) -}}
{{- end -}}
{{- $_ := set $kubernetes "agentNodes" (join "," $labels) -}}
{{- end -}}
{{- $config := dict
  "dataDir" .Values.store.directory
  "store" $store
  "mirror" (dict "listen" "127.0.0.1:5050")
  "admin" (dict "listen" "0.0.0.0:5052")
  "kubernetes" $kubernetes
  "log" (dict "format" "json")
  "registries" .Values.registries
-}}
{{- with .Values.defaultRegistry }}{{ $_ := set $config "defaultRegistry" . }}{{ end -}}
{{- $peer := dict "listen" "0.0.0.0:5051" -}}
{{- with .Values.peers.zone }}{{ $_ := set $peer "zone" . }}{{ end -}}
{{- $_ := set $config "peer" $peer -}}
{{- $credentials := dict -}}
{{- if .Values.credentials.dockerConfigSecret }}{{ $_ := set $credentials "dockerConfig" "/etc/hearth-credentials/.dockerconfigjson" }}{{ end -}}
{{- with .Values.credentials.kubeletDirectory -}}
{{- $_ := set $credentials "kubeletConfig" (printf "%s/config.json" .) -}}
{{- $_ := set $credentials "kubeletBinDir" . -}}
{{- end -}}
{{- if $credentials }}{{ $_ := set $config "credentials" $credentials }}{{ end -}}
{{- toYaml (mergeOverwrite $config (deepCopy .Values.config)) -}}
{{- end -}}

{{- /* Per runtime: the directory that the init container writes to, and the runtime's socket. */ -}}
{{- define "hearth.runtimes" -}}
containerd: { config: /etc/containerd, directory: /run/containerd, file: /run/containerd/containerd.sock }
crio: { config: /etc/containers, directory: /run/crio, file: /run/crio/crio.sock, selinux: true }
k3s: { config: /etc/rancher/k3s, directory: /run/k3s/containerd, file: /run/k3s/containerd/containerd.sock }
rke2: { config: /etc/rancher/rke2, directory: /run/k3s/containerd, file: /run/k3s/containerd/containerd.sock, selinux: true }
auto: { config: /etc, directory: /run/containerd, file: /run/containerd/containerd.sock }
none: { directory: /run/containerd, file: /run/containerd/containerd.sock }
{{- end -}}

{{- /* Mounts that every container with the configuration needs. */ -}}
{{- define "hearth.credentialMounts" -}}
{{- if .Values.credentials.dockerConfigSecret }}
- { name: credentials, mountPath: /etc/hearth-credentials, readOnly: true }
{{- end }}
{{- with .Values.credentials.kubeletDirectory }}
- { name: credential-provider, mountPath: {{ . | quote }}, readOnly: true }
{{- end }}
{{- end -}}

{{/* Not empty where agents read their certificates for peers from a secret. */}}
{{- define "hearth.peerFiles" -}}
{{- if and .Values.peers.enabled (has .Values.peers.tls.source (list "secret" "cert-manager")) }}yes{{ end }}
{{- end }}
